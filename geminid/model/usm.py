"""Log-mel -> soft tokens: Gemma 3n's audio encoder, a Universal Speech Model (Zhang et al. 2023).

Streaming by design: nothing depends on what is more than a few frames ahead. Parameters have the names and meaning of
the released weights; `geminid.interop` maps them one to one.

Axis letters: N states of a clip, U chunks, W states of a chunk, C keys that a chunk can see.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.model.layers import dense
from geminid.model.towers import UsmConfig

NORM_EPSILON = 1e-6


def sinusoid_of(distances: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines: distances int [n] -> float32 [n width]. Wavelengths from 2 pi to 20,000 pi, both reached."""
    steps = np.arange(width // 2) / max(width // 2 - 1, 1)
    angle = distances[:, None] * 1e4**-steps
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def rms_norm(width: int, rngs: nnx.Rngs, epsilon: float = NORM_EPSILON) -> nnx.RMSNorm:
    """Scaled by the weight itself, not by 1 + weight as in the decoder."""
    return nnx.RMSNorm(width, epsilon=epsilon, rngs=rngs)


class CumulativeGroupNorm(nnx.Module):
    """One group over mels, channels and all frames so far: a frame is normed by what was heard until then.

    The variance adds up each frame's squared distance to the mean *of its time*.
    """

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        """x [B T mels D]."""
        count = (1.0 + jnp.arange(x.shape[1]))[:, None, None] * (x.shape[2] * x.shape[3])

        def so_far(values: Array) -> Array:
            return jnp.cumsum(jnp.sum(values, (2, 3), keepdims=True), 1) / count

        centred = x - so_far(x)
        return centred * jax.lax.rsqrt(so_far(centred**2) + self.epsilon) * self.scale[...]


class Subsample(nnx.Module):
    """Strided convolutions over frames and mels, each normed and rectified, then a projection."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        widths = (1, *config.subsample_widths)
        self.convs = nnx.List(
            [
                # zeros stand after the last frame: a state hears what follows its first frame
                nnx.Conv(a, b, kernel, stride, padding=((0, kernel[0] - 1), (1, 1)), use_bias=False, rngs=rngs)
                for a, b, kernel, stride in zip(
                    widths, widths[1:], config.subsample_kernels, config.subsample_strides, strict=False
                )
            ]
        )
        self.norms = nnx.List(
            [CumulativeGroupNorm(width, config.group_norm_epsilon) for width in config.subsample_widths]
        )
        self.out = dense(config.mel_sizes[-1] * widths[-1], config.width, rngs)

    def __call__(self, mels: Array) -> Array:
        """mels [B frames mels] -> [B N D]."""
        x = mels[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return x.reshape(*x.shape[:2], -1) @ self.out[...]


class LocalAttention(nnx.Module):
    """Chunked local attention with relative positions (Dai et al. 2019, arXiv 1901.02860) and a logit cap."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.q, self.k, self.v = (dense(width, width, rngs) for _ in range(3))
        self.position = dense(width, width, rngs)
        self.per_dim_scale = nnx.Param(jnp.zeros(width // config.num_heads))

    def windows(self, x: Array) -> Array:
        """[B N ...] -> [B U C ...]: each chunk with what stands before and after it, zeros where nothing does."""
        config, length = self.config, x.shape[1]
        num_chunks = -(-length // config.chunk)
        before, after = config.left - 1, num_chunks * config.chunk - length + config.right
        x = jnp.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))
        starts = np.arange(num_chunks) * config.chunk
        return x[:, starts[:, None] + np.arange(before + config.chunk + config.right)]

    def __call__(self, x: Array, valid: Array) -> Array:
        """x [B N D], valid bool [B N] -> [B N D]. A state without a valid key gets the mean of its window."""
        config, (batch, length, width) = self.config, x.shape
        head_dim = width // config.num_heads
        q, k, v = ((x @ w[...]).reshape(batch, length, -1, head_dim) for w in (self.q, self.k, self.v))
        # softplus(0) = log 2: a scale of 0 is the usual 1 / sqrt(head width)
        q = q * (head_dim**-0.5 / np.log(2.0) * jax.nn.softplus(self.per_dim_scale[...]))
        short = -length % config.chunk
        q = jnp.pad(q, ((0, 0), (0, short), (0, 0), (0, 0))).reshape(batch, -1, config.chunk, *q.shape[2:])
        keys, values, present = self.windows(k), self.windows(v), self.windows(valid)

        # how far the key stands before the query [W C]; the left end of the window is `left - 1` before the chunk
        behind = np.arange(config.chunk)[:, None] + config.left - 1 - np.arange(keys.shape[2])
        near = (behind < config.left) & (behind >= -config.right)
        distances = np.arange(-config.right, config.left)
        place = (sinusoid_of(distances, width) @ self.position[...]).reshape(len(distances), -1, head_dim)
        place = place[np.clip(behind + config.right, 0, len(distances) - 1)]
        scores = jnp.einsum("buwhd,buchd->bhuwc", q, keys) + jnp.einsum("buwhd,wchd->bhuwc", q, place)
        scores = config.logit_cap * jnp.tanh(scores / config.logit_cap)
        scores = jnp.where(near & present[:, None, :, None, :], scores, -1e30)
        mixed = jnp.einsum("bhuwc,buchd->buwhd", jax.nn.softmax(scores, -1), values)
        return mixed.reshape(batch, -1, width)[:, :length]


class HalfMLP(nnx.Module):
    """MLP with norms before and after, added at a fraction (Gulati et al. 2020: one half)."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = rms_norm(config.width, rngs)
        self.up = dense(config.width, 4 * config.width, rngs)
        self.down = dense(4 * config.width, config.width, rngs)
        self.post_norm = rms_norm(config.width, rngs)

    def __call__(self, x: Array) -> Array:
        clamp = self.config.clamp
        hidden = jax.nn.silu(self.norm(jnp.clip(x, -clamp, clamp)) @ self.up[...]) @ self.down[...]
        return x + self.post_norm(jnp.clip(hidden, -clamp, clamp)) * self.config.residual_weight


class LightConvolution(nnx.Module):
    """Gated, depthwise over time and causal (Wu et al. 2019, arXiv 1901.10430)."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, kernel = config.width, config.conv_kernel
        self.norm = rms_norm(width, rngs, config.conv_norm_epsilon)
        self.expand = dense(width, 2 * width, rngs)
        self.depthwise = nnx.Param(jax.nn.initializers.normal(kernel**-0.5)(rngs.params(), (kernel, 1, width)))
        self.norm_depthwise = rms_norm(width, rngs, config.conv_norm_epsilon)
        self.contract = dense(width, width, rngs)

    def __call__(self, x: Array) -> Array:
        """x [B N D]; the convolution is a sum of shifts, which XLA runs faster on CPUs than a grouped convolution."""
        kernel, clamp = self.config.conv_kernel, self.config.clamp
        a, gate = jnp.split(self.norm(x) @ self.expand[...], 2, -1)
        padded = jnp.pad(a * jax.nn.sigmoid(gate), ((0, 0), (kernel - 1, 0), (0, 0)))
        mixed = sum(padded[:, i : i + x.shape[1]] * self.depthwise[i] for i in range(kernel))
        return x + jax.nn.silu(self.norm_depthwise(jnp.clip(mixed, -clamp, clamp))) @ self.contract[...]


class UsmBlock(nnx.Module):
    """Conformer block: half MLP, local attention, light convolution, half MLP, norm."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.first = HalfMLP(config, rngs=rngs)
        self.norm_attention = rms_norm(config.width, rngs)
        self.attention = LocalAttention(config, rngs=rngs)
        self.out = dense(config.width, config.width, rngs)
        self.post_attention = rms_norm(config.width, rngs)
        self.convolution = LightConvolution(config, rngs=rngs)
        self.last = HalfMLP(config, rngs=rngs)
        self.norm = rms_norm(config.width, rngs)

    def __call__(self, x: Array, valid: Array) -> Array:
        """x [B N D], valid bool [B N]."""
        clamp = self.config.clamp
        x = self.first(x)
        mixed = self.attention(self.norm_attention(jnp.clip(x, -clamp, clamp)), valid) @ self.out[...]
        x = x + self.post_attention(jnp.clip(mixed, -clamp, clamp))
        x = self.last(self.convolution(x * valid[..., None]))
        return self.norm(jnp.clip(x, -clamp, clamp))


class UsmEncoder(nnx.Module):
    """Subsampling, Conformer blocks, every `reduction`-th state."""

    def __init__(self, config: UsmConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.subsample = Subsample(config, rngs=rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> UsmBlock:
            return UsmBlock(config, rngs=rngs)

        self.layers = stack(rngs)

    def __call__(self, mels: Array, valid: Array) -> tuple[Array, Array]:
        """mels float32 [B frames mels], valid bool [B frames] -> soft tokens [B n D], zero where not valid bool [B n].

        Frames that are not valid still enter the convolutions next to the end of the clip, as in the original.
        """
        config = self.config
        if mels.shape[-1] != config.num_mels or valid.shape != mels.shape[:2]:
            raise ValueError(
                f"mels of shape {mels.shape} with validity of shape {valid.shape}; this encoder takes "
                f"[clips, frames, {config.num_mels}] and [clips, frames]"
            )
        x = self.subsample(mels)
        valid = valid[:, np.minimum(np.arange(x.shape[1]) * config.frames_per_state, valid.shape[1] - 1)]
        graph, weights = nnx.split(self.layers)
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x, valid), None), x, weights)
        x, valid = x[:, :: config.reduction], valid[:, :: config.reduction]
        return jnp.where(valid[..., None], x, 0.0), valid
