"""Log-mel -> soft tokens: strided convolutions and a Conformer (Gulati et al. 2020; USM, Zhang et al. 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.config import AudioConfig
from geminid.model.convolutions import group_norm
from geminid.model.layers import Attention, GatedMLP, RMSNorm, blocks_of, dense, sinusoid, through
from geminid.parallel.sharding import each_its_slots

POOL_PARTS = 4  # the global token knows what is said first and what last


class ConformerBlock(nnx.Module):
    """Half MLP, attention, depthwise convolution, half MLP."""

    def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
        width, kernel = config.width, config.conv_kernel
        self.norm_first = RMSNorm(width)
        self.first = GatedMLP(width, 2 * width, rngs=rngs, activation="silu")
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(width, config.num_heads, config.num_heads, width // config.num_heads, rngs=rngs)
        self.norm_conv = RMSNorm(width)
        self.expand = dense(width, 2 * width, rngs)
        init = jax.nn.initializers.normal(kernel**-0.5)
        self.depthwise = nnx.Param(init(rngs.params(), (kernel, width), jnp.float32))
        self.norm_depthwise = RMSNorm(width)
        self.contract = dense(width, width, rngs)
        self.norm_last = RMSNorm(width)
        self.last = GatedMLP(width, 2 * width, rngs=rngs, activation="silu")

    def convolve(self, x: Array, valid: Array) -> Array:
        """Depthwise over time by shifts; x [B T D]; valid [B T 1] keeps padding out."""
        expand, depthwise, contract = (p[...].astype(x.dtype) for p in (self.expand, self.depthwise, self.contract))
        a, gate = jnp.split(x @ expand, 2, -1)
        x = a * jax.nn.sigmoid(gate) * valid
        kernel, length = depthwise.shape[0], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (kernel // 2, kernel - 1 - kernel // 2), (0, 0)))
        x = jnp.sum(jnp.stack([padded[:, i : i + length] * depthwise[i] for i in range(kernel)]), 0)
        return jax.nn.silu(self.norm_depthwise(x)) @ contract

    def __call__(self, x: Array, valid: Array) -> Array:
        x = x + 0.5 * self.first(self.norm_first(x))
        x = x + self.attention(self.norm_attention(x), valid[:, None, :, 0] > 0)
        x = x + self.convolve(self.norm_conv(x), valid)
        return x + 0.5 * self.last(self.norm_last(x))


class ResidualConv1D(nnx.Module):
    """Two convolutions over time around a skip, norm and activation first (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, width: int, kernel: int, *, rngs: nnx.Rngs):
        self.norm_first = group_norm(width, rngs)
        self.first = nnx.Conv(width, width, (kernel,), padding="SAME", rngs=rngs)
        self.norm_second = group_norm(width, rngs)
        self.second = nnx.Conv(width, width, (kernel,), padding="SAME", rngs=rngs)

    def __call__(self, x: Array, valid: Array) -> Array:
        """x [B T D]; valid bool [B T 1] keeps padding at 0 and out of the norms."""
        heard = jnp.broadcast_to(valid, x.shape)
        hidden = self.first(jax.nn.silu(self.norm_first(x, mask=heard)) * valid)
        return (x + self.second(jax.nn.silu(self.norm_second(hidden, mask=heard)) * valid)) * valid


class AudioEncoder(nnx.Module):
    """Strided convolutions over time (mels are channels) with residual blocks, Conformer blocks, soft tokens.

    `reduction` states make one soft token; one more, the last, is made of all of them.
    """

    def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
        self.config = config
        kernel = config.conv_kernel
        pairs = list(zip((config.num_mels, *config.conv_widths), config.conv_widths, strict=False))
        self.down = nnx.List([nnx.Conv(a, b, (kernel,), (2,), padding="SAME", rngs=rngs) for a, b in pairs])
        self.residual = nnx.List(
            [ResidualConv1D(b, kernel, rngs=rngs) for _, b in pairs for _ in range(config.conv_blocks)]
        )
        self.inward = dense(config.conv_widths[-1], config.width, rngs)
        self.blocks = blocks_of(lambda rngs: ConformerBlock(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.width)
        self.gather = dense(POOL_PARTS * config.width, config.width, rngs)
        self.merge = dense(config.reduction * config.width, config.width, rngs)

    def hear(self, mels: Array, num_frames: Array) -> tuple[Array, Array]:
        """mels float [B frames mels], num_frames int [B] -> states [B n D] and their validity bool [B n 1].

        One state for every 2^convolutions frames. An empty slot counts as one frame, so that its norms are finite.
        """
        graph, weights = nnx.split((self.down, self.residual))

        def stem(weights: nnx.State, mels: Array, num_frames: Array) -> tuple[Array, Array]:
            downs, residuals = nnx.merge(graph, weights)
            valid = (jnp.arange(mels.shape[1]) < jnp.maximum(num_frames, 1)[:, None])[..., None]
            x, residual = normalised(mels, valid), iter(residuals)
            for down in downs:
                x, valid = down(x), valid[:, ::2]
                x = x * valid
                for _ in range(self.config.conv_blocks):
                    x = next(residual)(x, valid)
            return x, valid

        x, valid = each_its_slots(stem, weights, mels, num_frames)
        x = x @ self.inward[...] + 0.5 * sinusoid(x.shape[1], self.config.width)
        keep = valid.astype(x.dtype)
        if self.config.num_layers:
            x = through(self.blocks, *(a.astype(self.config.dtype) for a in (x, keep))).astype(x.dtype)
        return self.norm(x) * keep, valid

    def pool(self, x: Array, valid: Array) -> Array:
        """One vector for each clip [B D] from its states [B n D]: the means of its quarters, side by side."""
        time = jnp.cumsum(valid, 1) / jnp.maximum(valid.sum(1, keepdims=True), 1)  # [B n 1] in (0, 1]
        part = jnp.clip(jnp.ceil(time * POOL_PARTS), 1, POOL_PARTS) == 1 + jnp.arange(POOL_PARTS)  # [B n parts]
        weights = (part & valid).astype(x.dtype)
        means = jnp.einsum("bnp,bnd->bpd", weights, x) / jnp.maximum(weights.sum(1), 1.0)[..., None]
        return means.reshape(x.shape[0], -1) @ self.gather[...]

    def reduce(self, x: Array) -> Array:
        """States [B n D] -> soft tokens [B n/reduction D]: neighbours side by side, then projected."""
        reduction, (batch, length, width) = self.config.reduction, x.shape
        x = jnp.pad(x, ((0, 0), (0, -length % reduction), (0, 0))).reshape(batch, -1, reduction, width)
        return jnp.einsum("bnrd,rde->bne", x, self.merge[...].reshape(reduction, width, -1))

    def __call__(self, mels: Array, num_frames: Array) -> Array:
        """Soft tokens [B n+1 D] of clips, the global one last: mels float [B frames mels], num_frames int [B]."""
        return self.soft_tokens(*self.hear(mels, num_frames))

    def soft_tokens(self, states: Array, valid: Array) -> Array:
        """What `hear` returned -> soft tokens [B n+1 D], the global one last: short clips need fewer of the others."""
        return jnp.concatenate([self.reduce(states), self.pool(states, valid)[:, None]], 1)


def normalised(mels: Array, valid: Array) -> Array:
    """Each band to mean 0 over the clip, the clip to variance 1: takes out microphone and loudness.

    mels [B frames mels]; valid bool [B frames 1]; padding becomes 0.
    """
    count = jnp.maximum(valid.sum(1, keepdims=True), 1)
    centred = jnp.where(valid, mels - jnp.sum(jnp.where(valid, mels, 0.0), 1, keepdims=True) / count, 0.0)
    variance = jnp.sum(centred**2, (1, 2), keepdims=True) / (count * mels.shape[2])
    return centred * jax.lax.rsqrt(variance + 1e-2)
