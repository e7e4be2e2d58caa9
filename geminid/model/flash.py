"""Attention of packed rows by cuDNN's flash kernel: what `blockwise` computes, on NVIDIA GPUs from Hopper on.

FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608) in cuDNN's version. The kernel takes the documents of a row as
lengths and offsets, "packed layout" in its words, so that nothing of another document is read, not even to be masked.
JAX's public `jax.nn.dot_product_attention` does not offer these; what is below it does.

Axis letters: see `geminid.model`; M documents of a row at most.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap

from geminid.model.blockwise import ATTENDED

HALF = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 256  # numbers of a head, a multiple of 8: cuDNN's limits
HOPPER = 9.0  # compute capability: the first with a kernel for packed layout


def suits(q: Array, k: Array, soft_cap: float | None) -> bool:
    """Whether the kernel can do it here. q [B T H Dh]; k [B S K Dh]."""
    same_positions, head_dim = q.shape[1] == k.shape[1], q.shape[3]
    if soft_cap is not None or q.dtype not in HALF or not same_positions or head_dim % 8 or head_dim > LARGEST_HEAD:
        return False
    return jax.default_backend() == "gpu" and _capability() >= HOPPER


def _capability() -> float:
    return float(getattr(jax.devices()[0], "compute_capability", 0.0))


def documents_of(segments: Array, most: int) -> tuple[Array, Array, Array]:
    """Lengths int32 [B M] and first indices int32 [B M+1] of each row's documents, -1 where there are fewer; bool [B].

    segments int [B T]: runs of equal numbers are documents, padding too. The last says where `most` were enough.
    """
    length = segments.shape[1]
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begins = segments != before
    first = jax.vmap(lambda row: jnp.nonzero(row, size=most + 1, fill_value=length)[0])(begins).astype(jnp.int32)
    lengths, first = jnp.diff(first), first[:, :most]
    absent = first == length
    offsets = jnp.pad(jnp.where(absent, -1, first), ((0, 0), (0, 1)), constant_values=-1)
    return jnp.where(absent, -1, lengths), offsets, begins.sum(1) <= most


def flash(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """What `blockwise` gives where `suits`; padding sees earlier padding too, which nobody reads.

    q [B T H Dh] already scaled; k, v [B T K Dh]; segments int [B T], 0 padding; window: None, all of the document;
    documents: most of a row. A row that has more comes out as NaN rather than wrong. Returns [B T H Dh].
    """
    lengths, offsets, enough = documents_of(segments, documents + 1)  # padding is one
    groups = q.shape[2] // k.shape[2]
    if groups > 1:  # JAX up to 0.10 takes the offsets of keys as if each head had its own
        k, v = jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)
    out = _attend(q, k, v, lengths, offsets, window)
    return jnp.where(enough[:, None, None, None], out, jnp.nan)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, lengths: Array, offsets: Array, window: int | None) -> Array:
    return _forward(window)(q, k, v, lengths, offsets)[0]


def _forward(window: int | None):
    """(q, k, v, lengths, offsets) -> output [B T H Dh], log of the sum of the weights, float32 [B*M H T]."""

    @sequential_vmap  # JAX's own rule forgets the offsets
    def forward(q: Array, k: Array, v: Array, lengths: Array, offsets: Array) -> tuple[Array, Array]:
        given: Any = cudnn.dot_product_attention(
            q, k, v, None, None, lengths, lengths, offsets, offsets,
            mask_type=cudnn.MaskType.PADDING_CAUSAL, sliding_window_length=window, return_residual=True,
        )  # fmt: skip
        return given[0], given[1]

    return forward


def _attend_forward(
    q: Array, k: Array, v: Array, lengths: Array, offsets: Array, window: int | None
) -> tuple[Array, tuple]:
    out, log_sum = _forward(window)(q, k, v, lengths, offsets)
    out, log_sum = checkpoint_name(out, ATTENDED), checkpoint_name(log_sum, ATTENDED)
    return out, (q, k, v, lengths, offsets, log_sum, out)


def _backward(window: int | None):
    """What the forward pass left, and the output's gradient -> the gradients of q, k, v."""

    @sequential_vmap
    def backward(
        q: Array, k: Array, v: Array, lengths: Array, offsets: Array, log_sum: Array, out: Array, d_out: Array
    ) -> tuple[Array, Array, Array]:
        none = jnp.zeros(0, q.dtype)
        kept = (q, k, v, none, lengths, lengths, offsets, offsets, none, none, log_sum, out)
        scale, seed, dropout, bias = 1.0, 42, 0.0, (False, False)
        mask, layout = cudnn.MaskType.PADDING_CAUSAL, cudnn.AttentionLayout.BTNH.value
        given: Any = cudnn._dot_product_attention_bwd_rule(
            scale, seed, dropout, bias, mask, layout, window, True, False, kept, d_out
        )
        return given[0], given[1], given[2]

    return backward


def _attend_backward(window: int | None, kept: tuple, d_out: Array) -> tuple:
    return (*_backward(window)(*kept, d_out), None, None)


_attend.defvjp(_attend_forward, _attend_backward)
