"""Log-mel -> soft tokens: strided convolutions and a Conformer (Gulati et al. 2020; USM, Zhang et al. 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.config import AudioConfig
from geminid.model.layers import Attention, GatedMLP, RMSNorm, dense, sinusoid


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
        a, gate = jnp.split(x @ self.expand[...], 2, -1)
        x = a * jax.nn.sigmoid(gate) * valid
        kernel, length = self.depthwise.shape[0], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (kernel // 2, kernel - 1 - kernel // 2), (0, 0)))
        x = jnp.sum(jnp.stack([padded[:, i : i + length] * self.depthwise[i] for i in range(kernel)]), 0)
        return jax.nn.silu(self.norm_depthwise(x)) @ self.contract[...]

    def __call__(self, x: Array, valid: Array) -> Array:
        x = x + 0.5 * self.first(self.norm_first(x))
        x = x + self.attention(self.norm_attention(x), valid[:, None, :, 0] > 0)
        x = x + self.convolve(self.norm_conv(x), valid)
        return x + 0.5 * self.last(self.norm_last(x))


class AudioEncoder(nnx.Module):
    """Strided convolutions, Conformer blocks, mean over `reduction` frames."""

    def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels = (1, *config.conv_widths)
        self.convolutions = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), (2, 2), padding="SAME", rngs=rngs)
                for a, b in zip(channels, channels[1:], strict=False)
            ]
        )
        bands = -(-config.num_mels // 2 ** len(config.conv_widths))
        self.inward = dense(bands * channels[-1], config.width, rngs)
        self.blocks = nnx.List([ConformerBlock(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.width)
        self.pool_query = dense(config.width, 1, rngs)

    def __call__(self, mels: Array, num_frames: Array) -> tuple[Array, Array, Array]:
        """mels float [B frames mels], num_frames int [B].

        Returns soft tokens [B n D], their validity bool [B n], and one pooled vector per clip [B D].
        """
        valid = jnp.arange(mels.shape[1]) < num_frames[:, None]
        x = (jnp.where(valid[..., None], mels, 0.0))[..., None]
        for convolution in self.convolutions:
            x = jax.nn.gelu(convolution(x))
            valid = valid[:, ::2]
            x = x * valid[:, :, None, None]
        batch, length = x.shape[:2]
        x = x.reshape(batch, length, -1) @ self.inward[...]
        x = x + 0.5 * sinusoid(length, self.config.width)
        keep = valid[..., None].astype(x.dtype)
        for block in self.blocks:
            x = block(x, keep)
        x = self.norm(x) * keep
        weights = jax.nn.softmax(jnp.where(valid[..., None], x @ self.pool_query[...], -1e30), 1)
        pooled = jnp.sum(weights * x, 1)
        reduction = self.config.reduction
        short = -length % reduction
        x, keep = jnp.pad(x, ((0, 0), (0, short), (0, 0))), jnp.pad(keep, ((0, 0), (0, short), (0, 0)))
        count = keep.reshape(batch, -1, reduction).sum(2)
        soft = x.reshape(batch, -1, reduction, x.shape[-1]).sum(2) / jnp.maximum(count, 1.0)[..., None]
        return soft, count > 0, pooled
