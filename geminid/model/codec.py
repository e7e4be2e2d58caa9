"""Image codec: picture <-> grid of discrete codes, quantised by FSQ (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.config import CodecConfig
from geminid.model.convolutions import ResidualConv, convolution, fold, rms_norm, unfold
from geminid.model.layers import RMSNorm


def bound(z: Array, levels: tuple[int, ...]) -> Array:
    """Squash each channel so that rounding gives exactly its number of levels (section 3, f(z))."""
    level = jnp.array(levels, jnp.float32)
    half = (level - 1) * (1 + 1e-3) / 2  # the paper's 1 - 1e-3 fails for 2 levels
    offset = jnp.where(level % 2 == 0, 0.5, 0.0)
    shift = jnp.arctanh(offset / half)
    return jnp.tanh(z + shift) * half - offset


def quantise(z: Array, levels: tuple[int, ...]) -> Array:
    """Rounded values in [-1, 1], straight-through gradient. z: [... len(levels)]."""
    bounded = bound(z, levels)
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    return rounded / jnp.array([level // 2 for level in levels], jnp.float32)


def codes_of(quantised: Array, levels: tuple[int, ...]) -> Array:
    """Quantised values [... d] -> int32 codes [...], mixed radix, first level fastest."""
    half = jnp.array([level // 2 for level in levels], jnp.float32)
    digits = jnp.round(quantised * half + half).astype(jnp.int32)
    basis = jnp.array(np.cumprod([1, *levels[:-1]]), jnp.int32)
    return jnp.sum(digits * basis, -1)


def digits_of(codes: Array, levels: tuple[int, ...]) -> list[Array]:
    """int codes [...] -> the level of each channel, one int [...] for each of `levels`."""
    basis = np.cumprod([1, *levels[:-1]])
    return [codes // int(step) % level for step, level in zip(basis, levels, strict=True)]


def code_embedding(levels: tuple[int, ...], width: int, key: Array) -> Array:
    """Embeddings [codes width] of the usual scale, width^-0.5, in which codes that share levels begin alike.

    A code is a point in a grid: what is learned of one holds in part for its neighbours.
    """
    codes = jnp.arange(int(np.prod(levels)))
    tables = [
        jax.random.normal(k, (level, width))
        for k, level in zip(jax.random.split(key, len(levels)), levels, strict=True)
    ]
    parts = [jnp.take(table, digits, axis=0) for table, digits in zip(tables, digits_of(codes, levels), strict=True)]
    return sum(parts, jnp.zeros(())) * (len(levels) * width) ** -0.5


def spread_mean(scores: Array, codes: Array, levels: tuple[int, ...], spread: float) -> Array:
    """Mean score [N] over the neighbours of each code: scores [N all codes], codes int [N].

    Each channel's level is drawn from a normal around the code's own, `spread` levels wide, on the levels there are;
    0: the code alone. The grid is summed channel by channel, so no table of all pairs is needed.
    """
    for level, digit in zip(levels, digits_of(codes, levels), strict=True):
        distance = jnp.arange(level) - digit[:, None]
        weights = jax.nn.softmax(-0.5 * (distance / spread) ** 2) if spread else (distance == 0).astype(scores.dtype)
        scores = jnp.einsum("nrl,nl->nr", scores.reshape(len(scores), -1, level), weights)
    return scores[:, 0]


def values_of(codes: Array, levels: tuple[int, ...]) -> Array:
    """int codes [...] -> quantised values [... d]; the inverse of `codes_of`."""
    digits = jnp.stack(digits_of(codes, levels), -1)
    half = jnp.array([level // 2 for level in levels], jnp.float32)
    return (digits.astype(jnp.float32) - half) / half


class ImageCodec(nnx.Module):
    """Encoder and decoder work on the code grid, patches folded into channels: cheap on any hardware."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        patch = 3 * config.downsample**2
        self.inward = convolution(patch, config.width, 3, 1, rngs)
        self.encoder = nnx.List([ResidualConv(config.width, rms_norm, rngs=rngs) for _ in range(config.num_blocks)])
        self.encoder_norm = RMSNorm(config.width)
        self.to_levels = convolution(config.width, len(config.levels), 1, 1, rngs)
        self.from_levels = convolution(len(config.levels), config.width, 3, 1, rngs)
        self.decoder = nnx.List([ResidualConv(config.width, rms_norm, rngs=rngs) for _ in range(config.num_blocks)])
        self.decoder_norm = RMSNorm(config.width)
        self.outward = convolution(config.width, patch, 3, 1, rngs)

    def latents(self, pictures: Array) -> Array:
        """pictures float [B H W 3] in [-1, 1] -> quantised values [B h w d], straight-through."""
        factor = self.config.downsample
        if pictures.shape[1] % factor or pictures.shape[2] % factor:
            raise ValueError(f"picture {pictures.shape[1:3]} is not divisible by {factor} pixels per code; resize it")
        x = self.inward(fold(pictures, factor))
        for block in self.encoder:
            x = block(x)
        return quantise(self.to_levels(self.encoder_norm(x)), self.config.levels)

    def reconstruct(self, latents: Array) -> Array:
        """Quantised values [B h w d] -> pictures float [B H W 3]."""
        x = self.from_levels(latents)
        for block in self.decoder:
            x = block(x)
        return unfold(self.outward(self.decoder_norm(x)), self.config.downsample)

    def encode(self, pictures: Array) -> Array:
        """float [B H W 3] -> int32 codes [B h w]."""
        return codes_of(self.latents(pictures), self.config.levels)

    def decode(self, codes: Array) -> Array:
        """int codes [B h w] -> float pictures [B H W 3], clipped to [-1, 1]."""
        return jnp.clip(self.reconstruct(values_of(codes, self.config.levels)), -1.0, 1.0)

    def __call__(self, pictures: Array) -> Array:
        return self.reconstruct(self.latents(pictures))
