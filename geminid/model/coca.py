"""Contrastive captioner heads (CoCa, Yu et al. 2022, arXiv 2205.01917) that pretrain an encoder.

A text tower of causal blocks gives the contrastive text vector and feeds blocks that cross-attend to the
encoder's soft tokens and predict the caption. N: pairs in the batch, T: positions of a caption.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.model.layers import EncoderBlock, RMSNorm, dense, sinusoid


class CaptionHeads(nnx.Module):
    """Text tower, captioner, and the two projections into the shared space."""

    def __init__(self, num_ids: int, width: int, encoder_width: int, num_heads: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(1.0)
        self.embedding = nnx.Param(init(rngs.params(), (num_ids, width), jnp.float32))
        self.unimodal = EncoderBlock(width, num_heads, rngs=rngs)
        self.multimodal = EncoderBlock(width, num_heads, rngs=rngs, context_width=encoder_width)
        self.norm_text = RMSNorm(width)
        self.norm_caption = RMSNorm(width)
        self.project_text = dense(width, width, rngs)
        self.project_input = dense(encoder_width, width, rngs)
        self.caption = dense(width, num_ids, rngs, 0.1)
        self.log_temperature = nnx.Param(jnp.asarray(math.log(14.0), jnp.float32))  # 1 / 0.07, as in CLIP

    def _read(self, texts: Array) -> tuple[Array, Array]:
        """States [N T width] of the text tower, and who may see whom, bool [N T T]."""
        length = texts.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))[None] & (texts > 0)[:, None, :]
        x = jnp.take(self.embedding[...], texts, axis=0) + sinusoid(length, self.embedding.shape[1])
        return self.unimodal(x, mask), mask

    def tell(self, texts: Array) -> Array:
        """Unit vectors [N width] of texts, int [N T] padded with 0."""
        x, _ = self._read(texts)
        last = jnp.maximum((texts > 0).sum(1) - 1, 0)
        return unit(jnp.take_along_axis(self.norm_text(x), last[:, None, None], 1)[:, 0] @ self.project_text[...])

    def see(self, pooled: Array) -> Array:
        """Unit vectors [N width] of inputs; pooled [N D]."""
        return unit(pooled @ self.project_input[...])

    def caption_logits(self, texts: Array, soft: Array) -> Array:
        """[N T V] for captions int [N T] of inputs with soft tokens [N n D]."""
        x, mask = self._read(texts)
        return self.norm_caption(self.multimodal(x, mask, soft)) @ self.caption[...]


def unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def contrastive_loss(a: Array, b: Array, labels: Array, scale: Array, exclude_self: bool = False) -> Array:
    """InfoNCE in both directions; every pair of equal labels is a positive (Khosla et al. 2020, eq. 2)."""
    scores = scale * (a @ b.T)
    same = (labels[:, None] == labels[None, :]).astype(jnp.float32)
    if exclude_self:
        hide = jnp.eye(len(labels), dtype=bool)
        scores = jnp.where(hide, -1e9, scores)
        same = jnp.where(hide, 0.0, same)

    def one_way(scores: Array, same: Array) -> Array:
        count = same.sum(1)
        likelihood = jnp.sum(same * jax.nn.log_softmax(scores, 1), 1) / jnp.maximum(count, 1.0)
        return -jnp.sum(jnp.where(count > 0, likelihood, 0.0)) / jnp.maximum(jnp.sum(count > 0), 1.0)

    return 0.5 * (one_way(scores, same) + one_way(scores.T, same.T))


def caption_loss(logits: Array, texts: Array) -> Array:
    """Mean cross-entropy of each next id; texts int [N T], 0-padded."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), texts[:, 1:, None], 2)[..., 0]
    weights = (texts[:, 1:] > 0).astype(jnp.float32)
    return -jnp.sum(log_p * weights) / jnp.sum(weights)
