"""Convolutional blocks shared by the picture encoder and the image codec."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from flax import nnx
from jax import Array

from geminid.model.layers import RMSNorm

Norm = Callable[[int, nnx.Rngs], nnx.Module]


def convolution(c_in: int, c_out: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(c_in, c_out, (kernel, kernel), (stride, stride), padding="SAME", rngs=rngs)


def group_norm(width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Over places and channels (Wu & He 2018): keeps how strong the ink is here beside there."""
    return nnx.GroupNorm(width, num_groups=math.gcd(4, width), rngs=rngs)


def rms_norm(width: int, rngs: nnx.Rngs) -> RMSNorm:
    """Over the channels of each place alone: a codec's reconstruction is local."""
    return RMSNorm(width)


class ResidualConv(nnx.Module):
    """Two 3x3 convolutions around a skip, norm and activation first (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, width: int, norm: Norm, *, rngs: nnx.Rngs):
        self.norm_first = norm(width, rngs)
        self.first = convolution(width, width, 3, 1, rngs)
        self.norm_second = norm(width, rngs)
        self.second = convolution(width, width, 3, 1, rngs)

    def __call__(self, x: Array) -> Array:
        hidden = self.first(jax.nn.gelu(self.norm_first(x)))
        return x + self.second(jax.nn.gelu(self.norm_second(hidden)))


def fold(x: Array, factor: int) -> Array:
    """Space to depth: [B H W C] -> [B H/f W/f f*f*C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // factor, width // factor, -1)


def unfold(x: Array, factor: int) -> Array:
    """Depth to space: the inverse of `fold`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * factor, width * factor, -1)
