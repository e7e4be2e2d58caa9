"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685): a frozen weight and a trained difference of low rank.

Axis letters: see `geminid.model`; r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import GetAttrKey

from geminid.model.decoder import Decoder

TARGETS = ("attention/q", "attention/k", "attention/v", "attention/out", "mlp/gate", "mlp/up", "mlp/down")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """weight [... in out] and its difference a [... in r] @ b [... r out], times `scale` (alpha / r)."""

    weight: Array
    a: Array
    b: Array
    scale: float = field(metadata={"static": True})

    def times(self, x: Array) -> Array:
        """x [... in] -> [... out]."""
        return x @ self.weight.astype(x.dtype) + self.scale * (x @ self.a.astype(x.dtype)) @ self.b.astype(x.dtype)

    def merged(self) -> Array:
        """One weight that does the same, in the dtype of the frozen one."""
        return (self.weight + self.scale * (self.a @ self.b)).astype(self.weight.dtype)


def _weights(decoder: Decoder) -> dict[str, nnx.Param]:
    """The decoder's stacked matrices by name, such as "attention/q"."""
    found = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(decoder.layers)}
    return {name: found[name] for name in TARGETS}


def adapt(decoder: Decoder, rank: int, alpha: float, key: Array, targets: Sequence[str] = TARGETS) -> None:
    """Puts an adapter on each of the targets, in place: a random, b zero, so that nothing is changed yet."""
    weights = _weights(decoder)
    unknown = set(targets) - set(weights)
    if unknown or not targets:
        raise ValueError(f"unknown LoRA targets {sorted(unknown)}; known: {', '.join(TARGETS)}")
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}; it must be 1 or more")
    for number, name in enumerate(targets):
        weight = weights[name].get_value()
        layers, d_in, d_out = weight.shape
        a = jax.random.normal(jax.random.fold_in(key, number), (layers, d_in, rank), jnp.float32) * d_in**-0.5
        weights[name].set_value(Adapted(weight, a, jnp.zeros((layers, rank, d_out), jnp.float32), alpha / rank))


def merge(decoder: Decoder) -> None:
    """Adds every adapter to its weight, in place; what is left is a plain decoder."""
    for weight in _weights(decoder).values():
        if isinstance(value := weight.get_value(), Adapted):
            weight.set_value(value.merged())


def split_adapters(state: Any) -> tuple[list[Array], list[Array], Any]:
    """A decoder's state as (leaves of adapters, all others, how to join them): see `join_adapters`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    trained = [any(key in (GetAttrKey("a"), GetAttrKey("b")) for key in path) for path, _ in leaves]
    adapters = [leaf for (_, leaf), chosen in zip(leaves, trained, strict=True) if chosen]
    others = [leaf for (_, leaf), chosen in zip(leaves, trained, strict=True) if not chosen]
    return adapters, others, (tree, tuple(trained))


def join_adapters(adapters: Sequence[Array], others: Sequence[Array], how: Any) -> Any:
    """The state that `split_adapters` took apart."""
    tree, trained = how
    first, second = iter(adapters), iter(others)
    return jax.tree.unflatten(tree, [next(first if chosen else second) for chosen in trained])
