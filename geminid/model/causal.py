"""Attention of packed rows with an array of scores, for rows of a few thousand positions: what CPUs are fast at.

A block of queries looks at the keys up to its own end and no further, so that half of the scores are not computed when
there are many blocks. The softmax is divided by its sum after the values are added, where there are fewer numbers, and
its gradient takes one pass over the scores (FlashAttention, Dao et al. 2022, arXiv 2205.14135, appendix B.2).

Axis letters: see `geminid.model`; G query heads a key-value head, b queries of a block, S keys that it looks at.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from geminid.model.blockwise import NEVER, Where, sees

BLOCK = 128  # queries


def causal(
    q: Array, k: Array, v: Array, query: Where, key: Where, window: Array, soft_cap: float | None, block: int = BLOCK
) -> Array:
    """What `layers.attend` gives under the mask of `blockwise.sees`.

    q [B T H Dh] already scaled; k, v [B S K Dh]; window int []; block: queries of a block, where T and S are the same
    positions. Returns [B T H Dh].
    """
    batch, length, heads, width = q.shape
    q = q.reshape(batch, length, k.shape[2], -1, width)
    block = block if length == k.shape[1] else length
    parts = []
    for begin in range(0, length, block):
        end = min(begin + block, length)
        last = end if length == k.shape[1] else k.shape[1]
        mask = sees(_slice(query, begin, end), _slice(key, 0, last), window)
        parts.append(_attend(q[:, begin:end], k[:, :last], v[:, :last], mask, soft_cap))
    return jnp.concatenate(parts, 1).reshape(batch, length, heads, width)


def _slice(where: Where, begin: int, end: int) -> Where:
    return jax.tree.map(lambda x: x[:, begin:end], where)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, mask: Array, soft_cap: float | None) -> Array:
    """q [B b K G Dh]; k, v [B S K Dh]; mask bool [B b S], where each query sees a key -> [B b K G Dh]."""
    return _forward(q, k, v, mask, soft_cap)[0]


def _scores(q: Array, k: Array, mask: Array, soft_cap: float | None) -> Array:
    """Float32 [B K G b S]."""
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(mask[:, None, None], scores, NEVER)


def _forward(q: Array, k: Array, v: Array, mask: Array, soft_cap: float | None) -> tuple[Array, tuple]:
    scores = _scores(q, k, mask, soft_cap)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    inverse = jnp.moveaxis(1.0 / weights.sum(-1), 3, 1)[..., None]  # [B b K G 1]
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v, preferred_element_type=jnp.float32) * inverse
    out = out.astype(q.dtype)
    return out, (q, k, v, mask, weights, inverse, out)


def _backward(soft_cap: float | None, kept: tuple, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, weights, inverse, out = kept
    wide = {"preferred_element_type": jnp.float32}
    scaled = (d_out * inverse).astype(q.dtype)
    inner = jnp.einsum("btkgd,btkgd->bkgt", scaled, out, **wide)[..., None]
    of_weights = jnp.einsum("btkgd,bskd->bkgts", scaled, v, **wide)
    of_scores = weights * (of_weights - inner)
    if soft_cap is not None:  # of what is not seen the weight is 0
        scores = jnp.where(mask[:, None, None], _scores(q, k, mask, soft_cap), 0.0)
        of_scores = of_scores * (1.0 - (scores / soft_cap) ** 2)
    of_scores = of_scores.astype(q.dtype)
    d_q = jnp.einsum("bkgts,bskd->btkgd", of_scores, k, **wide).astype(q.dtype)
    d_k = jnp.einsum("bkgts,btkgd->bskd", of_scores, q, **wide).astype(k.dtype)
    d_v = jnp.einsum("bkgts,btkgd->bskd", weights, scaled, **wide).astype(v.dtype)
    return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)
