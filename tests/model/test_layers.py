"""Norms, rotary positions, attention and the gated MLP against plain numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.model.layers import Attention, EncoderBlock, GatedMLP, RMSNorm, attend, rotate, sinusoid, turns
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@jax.jit
def turn(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    return rotate(x, *turns(positions, x.shape[-1], theta))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain_attention(q, k, v, mask, soft_cap) -> np.ndarray:
    """One head and one query at a time; q [B T H Dh], k and v [B S K Dh]."""
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        scores = k[b, :, h // group] @ q[b, t, h]
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        if mask is not None:
            scores = np.where(mask[b, t], scores, -np.inf)
        out[b, t, h] = softmax(scores) @ v[b, :, h // group]
    return out


def test_rms_norm():
    x, scale = 3 * normal(4, 5, 8), normal(8, seed=1)
    norm = RMSNorm(8, epsilon=1e-5)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-6)
    norm.scale[...] = jnp.asarray(scale)
    np.testing.assert_allclose(norm(x), expected * (1 + scale), rtol=1e-5, atol=1e-6)


def test_rms_norm_of_half_precision_is_computed_in_float32():
    x = jnp.asarray(300 * normal(2, 4096), jnp.float16)  # the sum of squares is far beyond float16's 65,504
    got = RMSNorm(4096)(x)
    assert got.dtype == jnp.float16
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(got, wide / np.sqrt((wide**2).mean(-1, keepdims=True)), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("theta", [10_000.0, 100.0])
def test_rotary_is_a_complex_rotation(theta):
    x, positions = normal(2, 6, 3, 8), np.random.default_rng(1).integers(0, 900, (2, 6))
    half = 4
    numbers = x[..., :half].astype(np.complex128) + 1j * x[..., half:]
    angle = positions[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = numbers * np.exp(1j * angle)
    got = np.asarray(turn(x, positions, theta))
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=2e-4)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = normal(1, 5, 2, 16), normal(1, 5, 2, 16, seed=1)
    at, of = np.array([[0, 3, 7, 7, 20]]), np.array([[4, 1, 7, 0, 12]])

    def scores(shift: int) -> np.ndarray:
        return np.einsum("bthd,bthd->bth", turn(q, at + shift, 10_000.0), turn(k, of + shift, 10_000.0))

    np.testing.assert_allclose(scores(0), scores(57), atol=2e-4)
    assert np.abs(scores(0) - np.einsum("bthd,bthd->bth", q, k))[0, 1].max() > 0.1
    lengths = np.linalg.norm(turn(q, at, 10_000.0), axis=-1)
    np.testing.assert_allclose(lengths, np.linalg.norm(q, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("soft_cap", "masked"), [(None, True), (1.5, True), (None, False)])
def test_attention_is_the_definition_head_by_head(kv_heads, soft_cap, masked):
    q, k, v = normal(2, 5, 4, 8), normal(2, 7, kv_heads, 8, seed=1), normal(2, 7, kv_heads, 8, seed=2)
    mask = None
    if masked:
        mask = np.random.default_rng(3).random((2, 5, 7)) < 0.5
        mask[..., 0] = True
    got = jax.jit(attend, static_argnums=4)(q, k, v, mask, soft_cap)
    np.testing.assert_allclose(got, plain_attention(q, k, v, mask, soft_cap), atol=2e-6)


def test_cross_attention_normalises_queries_and_keys():
    module = filled(lambda: Attention(12, 4, 2, 6, rngs=nnx.Rngs(0), context_width=10), 0.4, seed=3)
    x, context = normal(2, 3, 12), normal(2, 5, 10, seed=1)
    mask = np.ones((2, 3, 5), bool)
    mask[1, :, 3:] = False

    def rms(values, norm):
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * (1 + np.asarray(norm.scale[...]))

    q = rms((x @ module.q[...]).reshape(2, 3, 4, 6), module.q_norm) / np.sqrt(6)
    k = rms((context @ module.k[...]).reshape(2, 5, 2, 6), module.k_norm)
    v = np.asarray(context @ module.v[...]).reshape(2, 5, 2, 6)
    expected = plain_attention(q, k, v, mask, None).reshape(2, 3, 24) @ module.out[...]
    np.testing.assert_allclose(jax.jit(module)(x, mask, context), expected, atol=1e-5)


def test_heads_that_cannot_share_are_refused():
    with pytest.raises(ValueError, match="6 heads cannot share 4 key-value heads"):
        Attention(12, 6, 4, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_gated_mlp(activation):
    module = filled(lambda: GatedMLP(6, 10, rngs=nnx.Rngs(0), activation=activation), 0.4, seed=3)
    x = normal(3, 4, 6)
    gate = x @ np.asarray(module.gate[...])
    if activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:  # Hendrycks & Gimpel 2016, section 2
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    expected = (gate * (x @ module.up[...])) @ module.down[...]
    np.testing.assert_allclose(jax.jit(module)(x), expected, atol=1e-5)


def test_an_encoder_block_knows_no_order_and_keeps_padding_out():
    block = filled(lambda: EncoderBlock(8, 2, rngs=nnx.Rngs(0), context_width=6), 0.4, seed=3)
    run = jax.jit(block)
    x, context = normal(2, 5, 8), normal(2, 4, 6, seed=1)
    order, other = np.array([3, 0, 4, 1, 2]), np.array([2, 3, 1, 0])
    everything, mask = np.ones((2, 5, 5), bool), np.broadcast_to(np.arange(5) < 3, (2, 5, 5))
    plain = np.asarray(run(x, everything, context))
    np.testing.assert_allclose(run(x[:, order], everything, context[:, other]), plain[:, order], atol=1e-5)
    changed = x.copy()
    changed[:, 3:] += 5
    kept = run(x, mask, context)[:, :3]
    np.testing.assert_array_equal(kept, run(changed, mask, context)[:, :3])
    assert np.abs(kept - plain[:, :3]).max() > 1e-3


def test_sinusoid():
    got = np.asarray(sinusoid(9, 6))
    for t in range(9):
        for i in range(3):
            angle = t / 10_000 ** (i / 3)
            np.testing.assert_allclose(got[t, [i, i + 3]], [np.sin(angle), np.cos(angle)], atol=1e-6)
