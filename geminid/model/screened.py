"""The likeliest ids of a float32 embedding, exactly, without reading all of it.

A copy in 8 bits, a quarter of the bytes, says for every id how high its score can be at most: the copy's score, and the
length of what rounding took away from the row times the length of the hidden state (Cauchy and Schwarz). Only the ids
whose bounds are highest are scored in float32. Where the best of these are above every other id's bound the answer is
proved; where they are not, the whole embedding is read. So the answer is always that of float32, up to the order of its
sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from geminid.model.matrices import Table, likeliest
from geminid.model.quantised import Quantised

CANDIDATES = 128  # scored in float32
SLACK = 1e-5  # of |row| |hidden|: how far a float32 sum over a row may be from the exact one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScreenedTable(Table):
    """weight float32 [V D]; coarse: the same in 8 bits; margins float32 [V]: of a score, where |hidden| is 1."""

    weight: Array
    coarse: Quantised
    margins: Array

    @classmethod
    def of(cls, embedding: Array) -> ScreenedTable:
        """embedding float [V D]."""
        coarse = Quantised.of(embedding.T, 8)

        @jax.jit
        def margins(embedding: Array, coarse: Quantised) -> Array:
            lost = jnp.linalg.norm(embedding - coarse.numbers(), axis=1)
            return lost + SLACK * jnp.linalg.norm(embedding, axis=1)

        return cls(embedding, coarse, margins(embedding, coarse))

    def rows(self, ids: Array) -> Array:
        return jnp.take(self.weight, ids, axis=0)

    def scores(self, hidden: Array) -> Array:
        return jnp.einsum("vd,bd->vb", self.weight, hidden, preferred_element_type=jnp.float32).T

    def best(self, hidden: Array, count: int) -> tuple[Array, Array]:
        if 2 * count > CANDIDATES or len(self.weight) <= CANDIDATES:
            return likeliest(self.scores(hidden), count)
        length = jnp.linalg.norm(hidden, axis=1, keepdims=True)
        bounds, ids = jax.lax.top_k(self.coarse.times(hidden) + self.margins * length, CANDIDATES + 1)
        ids, beyond = ids[:, :-1], bounds[:, -1]
        exact = jnp.einsum("bcd,bd->bc", self.rows(ids), hidden, preferred_element_type=jnp.float32)
        scores, ranks = likeliest(exact, count)
        best = scores, jnp.take_along_axis(ids, ranks, axis=1)
        proved = jnp.all(scores[:, -1] > beyond)
        return jax.lax.cond(proved, lambda: best, lambda: likeliest(self.scores(hidden), count))
