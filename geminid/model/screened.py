"""The likeliest ids of a float32 embedding, exactly, without reading all of it.

A copy in 8 bits, a quarter of the bytes, times the hidden state in twice 8 bits, says for every id how high its score
can be at most: that product, and the lengths of what rounding took away from the row and from the hidden state, each
times the length of the other (Cauchy and Schwarz). Only the blocks of ids whose bounds are highest are scored in
float32. Where the best of these are above every other block's bound the answer is proved; where they are not, the whole
embedding is read. So the answer is always that of float32, up to the order of its sums. Blocks, because XLA's CPU
backend sorts all ids to find a few: 100 ms of 262,144.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from geminid.model.matrices import Table, likeliest
from geminid.model.quantised import Eights, Quantised

BLOCK = 64  # ids that are scored in float32 together
SPARE = 24  # blocks that are scored beside two for each id that is wanted
SLACK = 1e-5  # of |row| |hidden|: how far a float32 sum over a row may be from the exact one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScreenedTable(Table):
    """weight float32 [V D]; coarse: the same in 8 bits; margins float32 [V]: of a score, where |hidden| is 1; lengths
    float32 [V]: of the copy's rows, at most."""

    weight: Array
    coarse: Quantised
    margins: Array
    lengths: Array

    @classmethod
    def of(cls, embedding: Array) -> ScreenedTable:
        """embedding float [V D]."""
        coarse = Quantised.of(embedding.T, 8)

        @jax.jit
        def norms(embedding: Array, coarse: Quantised) -> tuple[Array, Array]:
            lost, lengths = jnp.linalg.norm(embedding - coarse.numbers(), axis=1), jnp.linalg.norm(embedding, axis=1)
            return lost + SLACK * lengths, lost + lengths

        return cls(embedding, coarse, *norms(embedding, coarse))

    def bounds(self, hidden: Array) -> Array:
        """Of the scores, from above: hidden float32 [B D] -> [B V]."""
        eights = Eights.of(hidden)
        length, lost = (jnp.linalg.norm(x, axis=1, keepdims=True) for x in (hidden, eights.left))
        return eights.times(self.coarse.values) * self.coarse.scales[:, 0] + self.margins * length + self.lengths * lost

    def rows(self, ids: Array) -> Array:
        return jnp.take(self.weight, ids, axis=0, mode="clip")

    def scores(self, hidden: Array) -> Array:
        return jnp.einsum("vd,bd->vb", self.weight, hidden, preferred_element_type=jnp.float32).T

    def best(self, hidden: Array, count: int) -> tuple[Array, Array]:
        num_ids, num_blocks = len(self.weight), SPARE + 2 * count
        if 4 * num_blocks * BLOCK > num_ids:
            return likeliest(self.scores(hidden), count)
        padded = jnp.pad(self.bounds(hidden), ((0, 0), (0, -num_ids % BLOCK)), constant_values=-jnp.inf)
        highest, chosen = jax.lax.top_k(padded.reshape(len(hidden), -1, BLOCK).max(-1), num_blocks + 1)
        beyond, chosen = highest[:, -1], jnp.sort(chosen[:, :-1], axis=1)  # so the first of equal ids is taken
        ids = (chosen[:, :, None] * BLOCK + jnp.arange(BLOCK)).reshape(len(hidden), -1)
        exact = jnp.einsum("bcd,bd->bc", self.rows(ids), hidden, preferred_element_type=jnp.float32)
        exact = jnp.where(ids < num_ids, exact, -jnp.inf)
        scores, ranks = likeliest(exact, count)
        best = scores, jnp.take_along_axis(ids, ranks, axis=1)
        proved = jnp.all(scores[:, -1] > beyond)
        return jax.lax.cond(proved, lambda: best, lambda: likeliest(self.scores(hidden), count))
