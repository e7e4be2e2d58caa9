"""How weights are stored where they are read far more often than written. Axis letters: see `geminid.model`.

Decoding reads every weight once for a few rows: the memory's speed is the limit, and a layout that XLA's CPU kernels
read at full speed is worth a copy. Each class here stands for a weight [in out]: `times(x)` is x [... in] @ weight.
A table is an embedding [V D]: read by rows on the way in, and as a whole on the way out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


def flat_rows(x: Array) -> Array:
    """[... D] -> [N D]."""
    return x.reshape(-1, x.shape[-1])


def likeliest(scores: Array, count: int) -> tuple[Array, Array]:
    """The `count` highest of scores [B V], highest first, and their ids: [B count] each."""
    if count == 1:
        ids = jnp.argmax(scores, -1, keepdims=True)
        return jnp.take_along_axis(scores, ids, axis=-1), ids
    highest, ids = jax.lax.top_k(scores, count)
    return highest, ids


class Table(ABC):
    """An embedding [V D]."""

    @abstractmethod
    def rows(self, ids: Array) -> Array:
        """ids int [...] -> [... D]."""

    @abstractmethod
    def scores(self, hidden: Array) -> Array:
        """hidden [B D] -> float32 [B V]."""

    def best(self, hidden: Array, count: int) -> tuple[Array, Array]:
        """The `count` highest scores of hidden [B D], highest first, float32 [B count], and their ids int [B count]."""
        return likeliest(self.scores(hidden), count)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transposed:
    """A weight kept as [out in]: for several rows at once."""

    weight: Array

    @classmethod
    def of(cls, weight: Array) -> Transposed:
        return cls(jnp.asarray(weight.T))

    def times(self, x: Array) -> Array:
        return (self.weight.astype(x.dtype) @ flat_rows(x).T).T.reshape(*x.shape[:-1], -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowTable(Table):
    """An embedding as it is, [V D]: for several rows at once."""

    weight: Array

    def rows(self, ids: Array) -> Array:
        return jnp.take(self.weight, ids, axis=0)

    def scores(self, hidden: Array) -> Array:
        weight = self.weight.astype(hidden.dtype)
        return jnp.einsum("vd,bd->vb", weight, hidden, preferred_element_type=jnp.float32).T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ColumnTable(Table):
    """An embedding kept as [D V]: for one row."""

    weight: Array

    @classmethod
    def of(cls, embedding: Array) -> ColumnTable:
        return cls(jnp.asarray(embedding.T))

    def rows(self, ids: Array) -> Array:
        return jnp.moveaxis(jnp.take(self.weight, ids, axis=1), 0, -1)

    def scores(self, hidden: Array) -> Array:
        return jnp.matmul(hidden, self.weight.astype(hidden.dtype), preferred_element_type=jnp.float32)
