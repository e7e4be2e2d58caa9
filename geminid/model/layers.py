"""Blocks shared by the decoder and the encoders. Axis letters: see `geminid.model`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.parallel import ring
from geminid.parallel.sharding import current, gathered_block

SCANNED = 8  # from so many blocks on an encoder's are stacked and scanned: a program of one block, not of forty
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


class RMSNorm(nnx.Module):
    """Zhang & Sennrich 2019, with Gemma's `1 + scale`."""

    def __init__(self, width: int, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
        return (normed * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


def dense(d_in: int, d_out: int, rngs: nnx.Rngs, scale: float = 1.0) -> nnx.Param:
    """Weight [d_in, d_out], truncated normal with standard deviation scale / sqrt(d_in)."""
    init = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
    return nnx.Param(init(rngs.params(), (d_in, d_out), jnp.float32))


def times(x: Array, weight: nnx.Param) -> Array:
    """x [... in] times a weight [in out]: an array, or what knows how it is stored (`geminid.model.matrices`)."""
    value = weight.get_value()
    if hasattr(value, "times"):
        return value.times(x)
    if current() is not None:
        return x @ value.astype(x.dtype)
    # in two axes: the weight's gradient sums over one, and XLA's CPU kernels take it without transposing x first
    return (x.reshape(-1, x.shape[-1]) @ value.astype(x.dtype)).reshape(*x.shape[:-1], -1)


def entering(x: Array, weights: Sequence[nnx.Param]) -> list[tuple[Array, ...]]:
    """x [B T D] times weights of one of the decoder's layers, in the pieces of `geminid.parallel.ring`."""
    values = [weight.get_value() for weight in weights]
    if current() is None or any(hasattr(value, "times") for value in values):
        return [tuple(times(x, weight) for weight in weights)]
    return ring.entering(x, [value.astype(x.dtype) for value in values])


def leaving(pieces: Sequence[Array], weight: nnx.Param) -> Array:
    """Such pieces times a weight of one of the decoder's layers that leads back to its width: [B T D]."""
    value = weight.get_value()
    if current() is None or hasattr(value, "times"):
        return times(pieces[0], weight)
    return ring.leaving(pieces, value.astype(pieces[0].dtype))


def turns(positions: Array, head_dim: int, theta: Array | float, stretch: Array | None = None) -> tuple[Array, Array]:
    """Sine and cosine of rotary positions (Su et al. 2021), float32 [B T 1 Dh/2] each. positions: int [B T].

    stretch: positions are divided by it (Chen et al. 2023, arXiv 2306.15595).
    """
    half = head_dim // 2
    frequency = jnp.asarray(theta, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if stretch is not None:
        frequency = frequency / stretch

    def made(positions: Array, frequency: Array) -> tuple[Array, Array]:
        angle = positions[:, :, None, None].astype(jnp.float32) * frequency
        return jnp.sin(angle), jnp.cos(angle)

    def made_once(positions: Array, frequency: Array) -> tuple[Array, Array]:
        """XLA's CPU compiler makes them again for every head wherever they are read, but not what a branch gives."""
        none = jnp.zeros((*positions.shape, 1, half), jnp.float32)
        is_any = positions.reshape(-1)[0] > jnp.iinfo(positions.dtype).min  # always
        return jax.lax.cond(is_any, made, lambda *_: (none, none), positions, frequency)

    if positions.shape[1] == 1 or current() is not None:
        return made(positions, frequency)
    return jax.lax.platform_dependent(positions, frequency, cpu=made_once, default=made)


def rotate(x: Array, sin: Array, cos: Array) -> Array:
    """Rotary position embedding, half-split layout. x: [B T H Dh]; sin, cos: as `turns` gives them."""
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, mask: Array | None, soft_cap: float | None = None) -> Array:
    """Grouped-query attention in float32 (Ainslie et al. 2023; one key-value head: Shazeer 2019).

    q [B T H Dh] already scaled; k, v [B S K Dh]; mask bool [B T S] (True: may look) or None. Returns [B T H Dh].
    """
    batch, length, heads, head_dim = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, length, k.shape[2], groups, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, length, heads, head_dim)


class Attention(nnx.Module):
    """Multi-head attention with qk-norm; `context` makes it cross-attention."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        soft_cap: float | None = None,
        context_width: int | None = None,
        norm_epsilon: float = 1e-6,
    ):
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} heads cannot share {num_kv_heads} key-value heads; choose a divisor")
        self.shape = (num_heads, num_kv_heads, head_dim)
        self.soft_cap = soft_cap
        self.q = dense(width, num_heads * head_dim, rngs)
        self.k = dense(context_width or width, num_kv_heads * head_dim, rngs)
        self.v = dense(context_width or width, num_kv_heads * head_dim, rngs)
        self.out = dense(num_heads * head_dim, width, rngs)
        self.q_norm = RMSNorm(head_dim, norm_epsilon)
        self.k_norm = RMSNorm(head_dim, norm_epsilon)

    def by_heads(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """What the projections gave, [B T H*Dh] and twice [B S K*Dh], with an axis of heads and qk-norm."""
        heads, kv_heads, head_dim = self.shape
        q = q.reshape(*q.shape[:2], heads, head_dim)
        k, v = (each.reshape(*each.shape[:2], kv_heads, head_dim) for each in (k, v))
        return self.q_norm(q), self.k_norm(k), v

    def __call__(self, x: Array, mask: Array | None = None, context: Array | None = None) -> Array:
        """Without positions: encoders and cross-attention. x [B T D], mask bool [B T S]."""
        seen = x if context is None else context
        q, k, v = self.by_heads(times(x, self.q), times(seen, self.k), times(seen, self.v))
        mixed = attend(q * self.shape[2] ** -0.5, k, v, mask, self.soft_cap)
        return times(mixed.reshape(*x.shape[:2], -1), self.out)


class GatedMLP(nnx.Module):
    """Gated linear unit (Shazeer 2020). is_cut: of the decoder, its columns over devices of `tensor`."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, activation: str = "gelu_tanh", is_cut: bool = False):
        self.gate = dense(width, hidden, rngs)
        self.up = dense(width, hidden, rngs)
        self.down = dense(hidden, width, rngs)
        self.activation = activation
        self.is_cut = is_cut

    def __call__(self, x: Array) -> Array:
        def hidden(gate: Array, up: Array) -> Array:
            return ACTIVATIONS[self.activation](gate) * up

        if not self.is_cut:
            return times(hidden(times(x, self.gate), times(x, self.up)), self.down)
        return leaving([hidden(*piece) for piece in entering(x, (self.gate, self.up))], self.down)


class EncoderBlock(nnx.Module):
    """Pre-norm block, bidirectional unless masked, with cross-attention when `context_width` is given."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs, context_width: int | None = None):
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(width, num_heads, num_heads, width // num_heads, rngs=rngs)
        self.has_cross = context_width is not None
        if context_width is not None:
            self.norm_cross = RMSNorm(width)
            self.cross = Attention(
                width, num_heads, num_heads, width // num_heads, rngs=rngs, context_width=context_width
            )
        self.norm_mlp = RMSNorm(width)
        self.mlp = GatedMLP(width, 2 * width, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None, context: Array | None = None) -> Array:
        x = x + self.attention(self.norm_attention(x), mask)
        if self.has_cross:
            x = x + self.cross(self.norm_cross(x), context=context)
        return x + self.mlp(self.norm_mlp(x))


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> Any:
    """One module of the kind that `make` gives, its arrays those of `count` of them: [count ...]."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def made(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return made(rngs)


def blocks_of(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> Any:
    """`count` blocks for `through`: a list, or from `SCANNED` on one whose arrays are stacked, in checkpoints too."""
    return stacked(make, count, rngs) if count >= SCANNED else nnx.List([make(rngs) for _ in range(count)])


def through(blocks: Any, x: Array, *rest: Array) -> Array:
    """x [B T D] through what `blocks_of` gave, each block called as block(x, *rest)."""

    def one(x: Array, weights: nnx.State) -> tuple[Array, None]:
        return nnx.merge(graph, gathered_block(weights, x.dtype))(x, *rest), None

    if not isinstance(blocks, nnx.List):
        graph, weights = nnx.split(blocks)
        return jax.lax.scan(one, x, weights)[0]
    graph = nnx.split(blocks[0])[0]
    for block in blocks:
        x, _ = one(x, nnx.split(block)[1])
    return x


def sinusoid(length: int, width: int, longest: float = 10_000.0) -> np.ndarray:
    """Fixed sinusoidal positions, float32 [length, width] (Vaswani et al. 2017).

    Not by JAX: a TPU's program for as many sines is as long as that of a layer.
    """
    frequency = longest ** (-np.arange(width // 2) / (width // 2))
    angle = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], -1, dtype=np.float32)
