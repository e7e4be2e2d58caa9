"""Pictures -> soft tokens: a convolutional stem (Xiao et al. 2021) and a ViT (Dosovitskiy et al. 2020).

Resolution is free: any height and width that the encoder's stride divides.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.config import VisionConfig
from geminid.model.convolutions import ResidualConv, convolution, fold, group_norm
from geminid.model.layers import EncoderBlock, blocks_of, dense, sinusoid, through
from geminid.parallel.sharding import each_its_slots

POOL_GRID = 2  # the global token knows what is up, down, left and right
FOLD = 2  # pixels a side that become channels: a convolution at full resolution is the slowest part


def to_float(pixels: Array) -> Array:
    """uint8 [... 3] -> float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


class VisionEncoder(nnx.Module):
    """Stem, ViT blocks, a small grid of soft tokens and one made of all of them."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = (*config.stem_widths, config.width)
        self.inward = convolution(3 * FOLD**2, widths[0], 3, 1, rngs)
        self.residual = nnx.List(
            [ResidualConv(width, group_norm, rngs=rngs) for width in widths[1:] for _ in range(config.stem_blocks)]
        )
        self.down = nnx.List([convolution(a, b, 3, 2, rngs) for a, b in zip(widths, widths[1:], strict=False)])
        self.blocks = blocks_of(
            lambda rngs: EncoderBlock(config.width, config.num_heads, rngs=rngs), config.num_layers, rngs
        )
        self.norm = group_norm(config.width, rngs)
        self.pool = dense(POOL_GRID**2 * config.width, config.width, rngs)

    @property
    def stride(self) -> int:
        """Pixels between two ViT tokens."""
        return FOLD * 2 ** len(self.down)

    def __call__(self, pictures: Array) -> Array:
        """pictures: float [B H W 3] in [-1, 1]. Returns soft tokens [B soft_grid^2+1 D], the global one last."""
        grid, stride = self.config.soft_grid, self.stride
        if pictures.shape[1] % stride or pictures.shape[2] % stride:
            raise ValueError(
                f"picture {pictures.shape[1:3]} is not divisible by the encoder's stride {stride}; resize it"
            )
        graph, weights = nnx.split((self.inward, self.down, self.residual))

        def stem(weights: nnx.State, pictures: Array) -> Array:
            inward, downs, residuals = nnx.merge(graph, weights)
            x = jax.nn.gelu(inward(fold((1.0 - pictures) / 2.0, FOLD)))  # ink: white paper is 0, as the padding is
            residual = iter(residuals)
            for down in downs:
                x = down(x)
                for _ in range(self.config.stem_blocks):
                    x = next(residual)(x)
            return x

        x = each_its_slots(stem, weights, pictures)
        batch, height, width, channels = x.shape
        if self.config.num_layers:
            x = x + 0.1 * places(height, width, channels)
            tokens = x.reshape(batch, height * width, channels)
            x = through(self.blocks, tokens.astype(self.config.dtype)).astype(x.dtype).reshape(x.shape)
        x = jax.nn.gelu(self.norm(x))
        cells, quarters = resized(x, grid), resized(x, POOL_GRID)
        pooled = quarters.reshape(batch, -1) @ self.pool[...]
        return jnp.concatenate([cells, pooled[:, None]], 1)


def resized(x: Array, side: int) -> Array:
    """x [B H W D] -> [B side*side D]: as `jax.image.resize` by "linear", in one product for both axes."""
    batch, height, width, channels = x.shape
    tokens = x.reshape(batch, height * width, channels)
    if height == width == side:
        return tokens
    weights = np.kron(linear_weights(height, side), linear_weights(width, side))
    return jnp.einsum("sp,bpd->bsd", weights.astype(x.dtype), tokens)


def linear_weights(before: int, after: int) -> np.ndarray:
    """[after before]: linear interpolation, over a triangle as wide as what a place stands for where they get fewer.

    JAX has these within `resize` alone, made by the program at each step.
    """
    stands_for = before / after
    centre = (np.arange(after)[:, None] + 0.5) * stands_for - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(before) - centre) / max(stands_for, 1.0))
    return weights / weights.sum(1, keepdims=True)


def places(height: int, width: int, channels: int) -> Array:
    """Fixed positions [height width channels]: half the channels tell the row, half the column."""
    rows = jnp.broadcast_to(sinusoid(height, channels // 2)[:, None], (height, width, channels // 2))
    columns = jnp.broadcast_to(sinusoid(width, channels // 2)[None], (height, width, channels // 2))
    return jnp.concatenate([rows, columns], -1)
