"""Weights in 8 or 4 bits, read as they are: a copy in float32 is never made.

qwix rounds (symmetric, by the largest value of a group). The contraction is ours: `x @ q.astype(float32)` took many
times as long on XLA's CPU backend as a float32 weight. With 8 bits the sums are those of integers: an activation is
rounded to twice 8 bits, 15 together with its sign, and the weights are read once for both. With 4 bits the numbers are
widened inside the sum and activations stay in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import qwix
from jax import Array

from geminid.model.matrices import Table, flat_rows

COLUMNS = 8  # XLA's CPU backend multiplies integers by one column in fifteen times the time of eight
FINE = 254.0  # units of the second 8 bits in one of the first: what is left is at most half of one
LANES = 16  # partial sums of one output, side by side in a vector register
GROUP = 32  # weights of four bits that share a scale, as in GGUF's Q4 types
BLOCK = 1024  # outputs whose weights are widened at once: they stay in the processor's cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Eights:
    """Rows x float32 [N in] in twice 8 bits: columns int8 [C in], C a multiple of COLUMNS, the second bits of all rows
    after the first; scale float32 [N 1]; left float32 [N in]: what rounding took away."""

    columns: Array
    scale: Array
    left: Array

    @classmethod
    def of(cls, x: Array) -> Eights:
        scale = jnp.maximum(jnp.abs(x).max(1, keepdims=True), 1e-30) / 127.0
        left, parts = x, []
        for unit in (scale, scale / FINE):
            parts.append(jnp.round(left / unit).astype(jnp.int8))
            left = left - unit * parts[-1]
        return cls(jnp.pad(jnp.concatenate(parts), ((0, -2 * len(x) % COLUMNS), (0, 0))), scale, left)

    def times(self, values: Array) -> Array:
        """values int8 [out in] -> float32 [N out]."""
        rows = len(self.scale)
        sums = jnp.einsum("oi,ci->oc", values, self.columns, preferred_element_type=jnp.int32).astype(jnp.float32)
        return (sums[:, :rows] + sums[:, rows : 2 * rows] / FINE).T * self.scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """A weight [in out]: values int8 [out in], or uint8 [out in/2] of two fours; scales float32 [out G].

    Each scale belongs to in/G neighbours: G is 1 with eight bits. Of four bits, a byte holds in its lower half the
    weight n of a group, in its upper half the weight n + 16, each with 8 added.
    """

    values: Array
    scales: Array

    @classmethod
    def of(cls, weight: Array, bits: int) -> Quantised:
        """weight float [in out]."""
        num_in = weight.shape[0]
        if bits == 8:
            made = qwix.quantize(weight.T, jnp.int8, channelwise_axes=[0])
            return cls(made.qvalue, made.scale)
        if bits != 4:
            raise ValueError(f"weights of {bits} bits are not known; use 8 or 4")
        if num_in % GROUP:
            raise ValueError(
                f"{num_in} inputs are not a multiple of {GROUP}, which share a scale in 4 bits; use 8 bits"
            )
        made = qwix.quantize(weight.T, jnp.int4, channelwise_axes=[0], tiled_axes={1: GROUP})
        fours = (made.qvalue.astype(jnp.int8) + 8).astype(jnp.uint8).reshape(-1, num_in // GROUP, 2, GROUP // 2)
        packed = fours[:, :, 0] | (fours[:, :, 1] << 4)
        return cls(packed.reshape(packed.shape[0], -1), made.scale)

    @property
    def bits(self) -> int:
        return 8 if self.values.dtype == jnp.int8 else 4

    def numbers(self) -> Array:
        """The weight as it is read, float32 [out in]."""
        if self.bits == 8:
            return self.values.astype(jnp.float32) * self.scales
        out, groups = self.scales.shape
        packed = self.values.reshape(out, groups, 1, GROUP // 2)
        fours = jnp.concatenate([packed & 15, packed >> 4], 2).astype(jnp.float32) - 8.0
        return (fours.reshape(out, groups, GROUP) * self.scales[:, :, None]).reshape(out, -1)

    def times(self, x: Array) -> Array:
        # XLA would widen the whole weight before a loop of steps, and read four times as much in each
        weight, rows = jax.lax.optimization_barrier((self, flat_rows(x).astype(jnp.float32)))
        if self.bits == 8:
            product = Eights.of(rows).times(weight.values) * weight.scales[:, 0]
        else:
            product = weight._one(rows[0])[None] if len(rows) == 1 else weight._several(rows)
        return product.reshape(*x.shape[:-1], -1).astype(x.dtype)

    def _one(self, x: Array) -> Array:
        """Four bits, x [in] -> [out]: LANES partial sums of every output in one pass over the weight; their sum."""
        partial = jnp.zeros((), jnp.float32)
        for at in range(0, self.values.shape[1], LANES):
            part = self.values[:, at : at + LANES]
            low, high = x[2 * at : 2 * at + LANES], x[2 * at + LANES : 2 * at + 2 * LANES]
            scale = self.scales[:, 2 * at // GROUP, None]
            # each half is a number plus 8
            sums = (part & 15).astype(jnp.float32) * low + (part >> 4).astype(jnp.float32) * high - 8.0 * (low + high)
            partial = partial + scale * sums
        partial = jax.lax.optimization_barrier(partial)  # fused with the sum below it would be summed lane by lane
        return partial @ jnp.ones(partial.shape[1], jnp.float32)

    def _several(self, x: Array) -> Array:
        """Four bits, x [N in] -> [N out], BLOCK outputs at a time."""

        def widened(_: None, block: Quantised) -> tuple[None, Array]:
            return None, block.numbers() @ x.T

        out = self.values.shape[0]
        block = BLOCK if out % BLOCK == 0 else out
        blocks = jax.tree.map(lambda a: a.reshape(-1, block, a.shape[1]), self)
        return jax.lax.scan(widened, None, blocks)[1].reshape(out, len(x)).T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantisedTable(Table):
    """An embedding in 8 or 4 bits: weight [D V] as it is multiplied."""

    weight: Quantised

    @classmethod
    def of(cls, embedding: Array, bits: int) -> QuantisedTable:
        """embedding float [V D]."""
        return cls(Quantised.of(embedding.T, bits))

    def rows(self, ids: Array) -> Array:
        chosen = jax.tree.map(lambda a: jnp.take(a, ids.reshape(-1), axis=0), self.weight)
        return chosen.numbers().reshape(*ids.shape, -1)

    def scores(self, hidden: Array) -> Array:
        return self.weight.times(hidden).astype(jnp.float32)
