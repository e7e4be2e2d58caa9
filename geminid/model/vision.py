"""Pictures -> soft tokens: a convolutional stem (Xiao et al. 2021) and a ViT (Dosovitskiy et al. 2020).

Resolution is free: any height and width that `VisionConfig`'s strides divide.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.config import VisionConfig
from geminid.model.layers import EncoderBlock, RMSNorm, dense, sinusoid


def convolution(c_in: int, c_out: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(c_in, c_out, (kernel, kernel), (stride, stride), padding="SAME", rngs=rngs)


def to_float(pixels: Array) -> Array:
    """uint8 [... 3] -> float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


class ResidualConv(nnx.Module):
    """Two 3x3 convolutions around a skip, norm first."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width)
        self.first = convolution(width, width, 3, 1, rngs)
        self.middle = RMSNorm(width)
        self.second = convolution(width, width, 3, 1, rngs)

    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.gelu(self.first(self.norm(x)))
        return x + self.second(self.middle(hidden))


class VisionEncoder(nnx.Module):
    """Stem, ViT blocks, one pooled global token and a small grid of local ones."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = (3, *config.stem_widths)
        self.down = nnx.List([convolution(a, b, 3, 2, rngs) for a, b in zip(widths, widths[1:], strict=False)])
        self.residual = nnx.List([ResidualConv(w, rngs=rngs) for w in config.stem_widths])
        self.patch = convolution(widths[-1], config.width, config.patch, config.patch, rngs)
        self.blocks = nnx.List(
            [EncoderBlock(config.width, config.num_heads, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.width)
        self.pool_query = dense(config.width, 1, rngs)
        self.pool_out = dense(2 * config.width, config.width, rngs)

    @property
    def stride(self) -> int:
        return 2 ** len(self.config.stem_widths) * self.config.patch

    def __call__(self, pictures: Array) -> Array:
        """pictures: float [B H W 3] in [-1, 1]. Returns soft tokens [B soft_grid^2+1 D], global first."""
        config = self.config
        if pictures.shape[1] % self.stride or pictures.shape[2] % self.stride:
            raise ValueError(
                f"picture {pictures.shape[1:3]} is not divisible by the encoder's stride {self.stride}; resize it"
            )
        x = pictures
        for down, residual in zip(self.down, self.residual, strict=True):
            x = residual(jax.nn.gelu(down(x)))
        x = self.patch(x)
        batch, height, width, channels = x.shape
        rows, columns = sinusoid(height, channels // 2), sinusoid(width, channels // 2)
        x = x + jnp.concatenate(
            [
                jnp.broadcast_to(rows[:, None], (height, width, channels // 2)),
                jnp.broadcast_to(columns[None], (height, width, channels // 2)),
            ],
            -1,
        )
        x = x.reshape(batch, height * width, channels)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        weights = jax.nn.softmax(x @ self.pool_query[...], 1)
        pooled = jnp.concatenate([jnp.sum(weights * x, 1), jnp.mean(x, 1)], -1) @ self.pool_out[...]
        grid = jax.image.resize(
            x.reshape(batch, height, width, channels), (batch, config.soft_grid, config.soft_grid, channels), "linear"
        )
        return jnp.concatenate([pooled[:, None], grid.reshape(batch, -1, channels)], 1)
