"""Attention without an array of T x T: blocks of queries against blocks of keys, the softmax kept as it goes.

Forward: Milakov & Gimelshein 2018 (arXiv 1805.02867), Rabe & Staats 2021 (arXiv 2112.05682). Backward: the weights are
computed again from the logarithm of their sum, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 2). Blocks
in which nobody sees anybody, later ones, other documents' and those before the window, are not computed.

Axis letters: see `geminid.model`; G query heads a key-value head, N query blocks, J key blocks, b positions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap

ATTENDED = "attended"  # the name under which a policy of rematerialisation may keep what attention gave
NEVER = -1e30  # a score of what is not seen
NO_QUERY, NO_KEY = -1, -2  # segments and indices of padding that fills the last block


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Where:
    """Where positions stand: document (0: padding), position in it and index in the row, int [B T] each."""

    segments: Array
    positions: Array
    indices: Array

    @classmethod
    def of(cls, segments: Array, positions: Array) -> Where:
        return cls(segments, positions, jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape))


def sees(query: Where, key: Where, window: Array) -> Array:
    """bool [B T S]: earlier keys of the query's document, less than `window` positions away, and the query itself."""
    own = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    index, key_index = query.indices[:, :, None], key.indices[:, None, :]
    near = query.positions[:, :, None] - key.positions[:, None, :] < window
    return own & (key_index <= index) & near | (key_index == index)


def blockwise(
    q: Array, k: Array, v: Array, query: Where, key: Where, window: Array, soft_cap: float | None, block: int
) -> Array:
    """What `layers.attend` gives under the mask of `sees`, in memory that is linear in T and S.

    q [B T H Dh] already scaled; k, v [B S K Dh]; window int []; block: positions of a block. Returns [B T H Dh].
    """
    length, keys = q.shape[1], k.shape[1]
    q, query = _filled(q, block), _filled_where(query, block, NO_QUERY)
    k, v, key = _filled(k, block), _filled(v, block), _filled_where(key, block, NO_KEY)
    assert keys <= k.shape[1]
    return _attend(q, k, v, query, key, jnp.asarray(window), soft_cap, block)[:, :length]


def _filled(x: Array, block: int, value: int = 0) -> Array:
    """x [B T ...] with `value` up to a multiple of `block`."""
    widths = [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, widths, constant_values=value)


def _filled_where(where: Where, block: int, value: int) -> Where:
    return jax.tree.map(lambda x: _filled(x, block, value), where)


def _block(x: Array, number: Array, block: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, number * block, block, 1)


def _where_block(where: Where, number: Array, block: int) -> Where:
    return jax.tree.map(lambda x: _block(x, number, block), where)


def _grouped(x: Array, num_kv: int) -> Array:
    """[B b H Dh] -> [B b K G Dh]."""
    return x.reshape(*x.shape[:2], num_kv, -1, x.shape[-1])


def reach(query: Where, key: Where, window: Array, block: int) -> tuple[Array, Array]:
    """For each block of queries the first block of keys that it may see and the one after the last, int [N] each.

    Some row has a pair in the block only if the ranges of segments meet, a key is not after all queries and not too
    far before all of them.
    """

    def ends(x: Array) -> tuple[Array, Array]:
        blocks = x.reshape(len(x), -1, block)
        return blocks.min(2), blocks.max(2)  # [B N]

    first_q, last_q = ends(query.segments)
    first_k, last_k = ends(key.segments)
    meet = (first_q[:, :, None] <= last_k[:, None]) & (first_k[:, None] <= last_q[:, :, None])
    causal = ends(key.indices)[0][:, None] <= ends(query.indices)[1][:, :, None]
    near = ends(query.positions)[0][:, :, None] - ends(key.positions)[1][:, None] < window
    may = (meet & causal & near).any(0)  # [N J]
    begin, end = jnp.argmax(may, 1), may.shape[1] - jnp.argmax(may[:, ::-1], 1)
    return begin, jnp.where(may.any(1), end, begin)


def _scores(q: Array, k: Array, mask: Array, soft_cap: float | None) -> Array:
    """q [B b K G Dh], k [B b K Dh], mask bool [B b b] -> float32 [B K G b b]."""
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(mask[:, None, None], scores, NEVER)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(
    q: Array, k: Array, v: Array, query: Where, key: Where, window: Array, soft_cap: float | None, block: int
) -> Array:
    return _forward(soft_cap, block)(q, k, v, query, key, window)[0]


def _forward(soft_cap: float | None, block: int):
    """(q, k, v, query, key, window) -> output [B T H Dh], log of the sum of the weights, float32 [N B K G b]."""

    @sequential_vmap
    def forward(q: Array, k: Array, v: Array, query: Where, key: Where, window: Array) -> tuple[Array, Array]:
        batch, length, heads, width = q.shape
        num_kv = k.shape[2]
        begin, end = reach(query, key, window, block)

        def one(i: Array) -> tuple[Array, Array]:
            q_i, at = _grouped(_block(q, i, block), num_kv), _where_block(query, i, block)

            def add(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                mixed, most, total = carry
                mask = sees(at, _where_block(key, j, block), window)
                scores = _scores(q_i, _block(k, j, block), mask, soft_cap)
                new = jnp.maximum(most, scores.max(-1))
                weights = jnp.where(mask[:, None, None], jnp.exp(scores - new[..., None]), 0.0)
                v_j = _block(v, j, block)
                more = jnp.einsum("bkgts,bskd->bkgtd", weights.astype(v.dtype), v_j, preferred_element_type=jnp.float32)
                shrink = jnp.exp(most - new)
                return mixed * shrink[..., None] + more, new, total * shrink + weights.sum(-1)

            shape = (batch, num_kv, heads // num_kv, block)
            start = jnp.zeros((*shape, width)), jnp.full(shape, NEVER), jnp.zeros(shape)
            mixed, most, total = jax.lax.fori_loop(begin[i], end[i], add, start)
            safe = jnp.maximum(total, 1e-30)  # queries that fill the last block see nobody
            out = jnp.moveaxis(mixed / safe[..., None], 3, 1).reshape(batch, block, heads, width)
            return out.astype(q.dtype), most + jnp.log(safe)

        out, log_sum = jax.lax.map(one, jnp.arange(length // block))
        return jnp.moveaxis(out, 0, 1).reshape(q.shape), log_sum

    return forward


def _attend_forward(
    q: Array, k: Array, v: Array, query: Where, key: Where, window: Array, soft_cap: float | None, block: int
) -> tuple[Array, tuple]:
    out, log_sum = _forward(soft_cap, block)(q, k, v, query, key, window)
    out, log_sum = checkpoint_name(out, ATTENDED), checkpoint_name(log_sum, ATTENDED)
    return out, (q, k, v, query, key, window, out, log_sum)


def _backward(soft_cap: float | None, block: int):
    """What the forward pass left, and the output's gradient -> the gradients of q, k, v."""

    @sequential_vmap
    def backward(
        q: Array, k: Array, v: Array, query: Where, key: Where, window: Array, out: Array, log_sum: Array, d_out: Array
    ) -> tuple[Array, Array, Array]:
        num_kv = k.shape[2]
        begin, end = reach(query, key, window, block)

        def one(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
            q_i, d_out_i, out_i = (_grouped(_block(x, i, block), num_kv) for x in (q, d_out, out))
            at, log_sum_i = _where_block(query, i, block), log_sum[i]
            inner = jnp.einsum("btkgd,btkgd->bkgt", d_out_i, out_i, preferred_element_type=jnp.float32)

            def add(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                d_q, d_k, d_v = carry
                k_j, v_j = _block(k, j, block), _block(v, j, block)
                mask = sees(at, _where_block(key, j, block), window)
                scores = _scores(q_i, k_j, mask, soft_cap)
                weights = jnp.where(mask[:, None, None], jnp.exp(scores - log_sum_i[..., None]), 0.0)
                of_weights = jnp.einsum("btkgd,bskd->bkgts", d_out_i, v_j, preferred_element_type=jnp.float32)
                of_scores = weights * (of_weights - inner[..., None])
                if soft_cap is not None:  # masked scores have no weight
                    of_scores = of_scores * (1.0 - (jnp.where(mask[:, None, None], scores, 0.0) / soft_cap) ** 2)
                weights, of_scores = weights.astype(q.dtype), of_scores.astype(q.dtype)
                wide = {"preferred_element_type": jnp.float32}
                d_q = d_q + jnp.einsum("bkgts,bskd->btkgd", of_scores, k_j, **wide)
                d_k = _added(d_k, jnp.einsum("bkgts,btkgd->bskd", of_scores, q_i, **wide), j, block)
                d_v = _added(d_v, jnp.einsum("bkgts,btkgd->bskd", weights, d_out_i, **wide), j, block)
                return d_q, d_k, d_v

            start = (jnp.zeros(q_i.shape, jnp.float32), *carry)
            d_q, d_k, d_v = jax.lax.fori_loop(begin[i], end[i], add, start)
            return (d_k, d_v), d_q.astype(q.dtype)

        empty = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        (d_k, d_v), d_q = jax.lax.scan(one, empty, jnp.arange(q.shape[1] // block))
        return jnp.moveaxis(d_q, 0, 1).reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype)

    return backward


def _added(total: Array, more: Array, number: Array, block: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(total, _block(total, number, block) + more, number * block, 1)


def _attend_backward(soft_cap: float | None, block: int, kept: tuple, d_out: Array) -> tuple:
    return (*_backward(soft_cap, block)(*kept, d_out), None, None, None)


_attend.defvjp(_attend_forward, _attend_backward)
