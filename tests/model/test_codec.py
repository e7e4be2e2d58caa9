"""Codes, values and pictures: bijections by enumeration, the quantiser by its paper (Mentzer et al. 2023)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.config import CodecConfig
from geminid.model.codec import ImageCodec, code_embedding, codes_of, quantise, spread_mean, values_of
from geminid.model.convolutions import fold, unfold
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
TINY = CodecConfig(levels=(5, 4, 3), downsample=4, width=8, num_blocks=1)
LEVELS = [(8, 5, 5, 5), (3, 4, 7, 6), (2, 3, 5, 5)]


@pytest.fixture(scope="module")
def codec():
    return filled(lambda: ImageCodec(TINY, rngs=nnx.Rngs(0)), 0.3, seed=0)


def pictures(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@settings(max_examples=6)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=3).map(tuple))
def test_codes_and_values_are_one_to_one(levels):
    num_codes = CodecConfig(levels=levels).num_codes
    codes = np.arange(num_codes, dtype=np.int32)
    values = np.asarray(jax.jit(values_of, static_argnums=1)(codes, levels))
    # every combination of the channels' values, the first channel fastest
    channels = [[(digit - level // 2) / (level // 2) for digit in range(level)] for level in levels]
    expected = [combination[::-1] for combination in itertools.product(*reversed(channels))]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(codes_of, static_argnums=1)(values, levels), codes)
    assert np.abs(values).max() <= 1


@settings(max_examples=6)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple), st.sampled_from([0.0, 0.3, 0.8, 3.0]))
def test_a_spread_mean_is_that_of_a_table_of_all_pairs(levels, spread):
    num_codes = CodecConfig(levels=levels).num_codes
    grid = np.array([combination[::-1] for combination in itertools.product(*map(range, reversed(levels)))])
    squares = ((grid[:, None] - grid) ** 2).sum(-1)
    table = np.exp(-0.5 * squares / spread**2) if spread else np.eye(num_codes)
    scores = np.random.default_rng(0).standard_normal((num_codes, num_codes))
    got = jax.jit(spread_mean, static_argnums=(2, 3))(scores, np.arange(num_codes), levels, spread)
    np.testing.assert_allclose(got, (table / table.sum(1, keepdims=True) * scores).sum(1), atol=1e-5)


def test_codes_begin_as_much_alike_as_they_share_levels():
    levels, width = (8, 5, 5, 5), 4096
    x = np.asarray(jax.jit(code_embedding, static_argnums=(0, 1))(levels, width, jax.random.key(0)))
    assert x.shape == (1000, width)
    assert x.std() == pytest.approx(width**-0.5, rel=0.02)
    grid = np.array([combination[::-1] for combination in itertools.product(*map(range, reversed(levels)))])
    shared = (grid[:, None] == grid).mean(-1)
    np.testing.assert_allclose(x @ x.T / (x**2).sum(1).mean(), shared, atol=0.12)


@pytest.mark.parametrize("levels", LEVELS)
def test_each_channel_takes_exactly_its_number_of_values(levels):
    z = np.linspace(-9, 9, 2001, dtype=np.float32)
    got = np.asarray(jax.jit(quantise, static_argnums=1)(np.repeat(z[:, None], len(levels), 1), levels))
    for channel, level in zip(got.T, levels, strict=True):
        np.testing.assert_allclose(np.unique(channel), (np.arange(level) - level // 2) / (level // 2), atol=1e-6)
        assert (np.diff(channel) >= 0).all()  # and keeps their order


def test_quantised_values_and_codes_agree():
    z = 2 * np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    z[0, 0] = 0

    @jax.jit
    def there_and_back(z):
        values = quantise(z, (8, 5, 5, 5))
        codes = codes_of(values, (8, 5, 5, 5))
        return values, codes, values_of(codes, (8, 5, 5, 5))

    values, codes, back = there_and_back(z)
    assert codes.shape == (3, 5) and codes.dtype == jnp.int32
    np.testing.assert_allclose(back, values, atol=1e-6)
    np.testing.assert_array_equal(values[0, 0], 0)


def test_the_gradient_passes_straight_through_the_rounding():
    levels = (8, 5)
    z = np.random.default_rng(1).standard_normal((6, 2)).astype(np.float32)
    got = np.asarray(jax.jit(jax.grad(lambda z: quantise(z, levels).sum()))(z))
    for channel, level, column in zip(z.T, levels, got.T, strict=True):
        reach = (level - 1) * (1 + 1e-3) / 2
        shift = np.arctanh((0.5 if level % 2 == 0 else 0.0) / reach)
        np.testing.assert_allclose(column, reach * (1 - np.tanh(channel + shift) ** 2) / (level // 2), rtol=1e-4)
    assert (got != 0).all()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_fold_gathers_patches_and_unfold_is_its_inverse(factor):
    x = np.random.default_rng(2).standard_normal((2, 8, 4, 3)).astype(np.float32)
    folded = np.asarray(fold(x, factor))
    for b, i, j in np.ndindex(folded.shape[:3]):
        patch = x[b, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        np.testing.assert_array_equal(folded[b, i, j], patch.reshape(-1))
    np.testing.assert_array_equal(unfold(folded, factor), x)


def test_any_shape_that_the_patches_divide(codec):
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    x = pictures(2, 8, 16)
    codes = np.asarray(encode(x))
    assert codes.shape == (2, 2, 4) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < TINY.num_codes
    assert len(np.unique(codes)) > 4
    back = np.asarray(decode(codes))
    assert back.shape == x.shape
    assert back.min() >= -1 and back.max() <= 1
    # the codes are all that the decoder sees of a picture
    np.testing.assert_allclose(np.clip(jax.jit(codec)(x), -1, 1), back, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 10), (1, 6, 8), (1, 3, 3)])
def test_other_sizes_are_refused(codec, shape):
    with pytest.raises(ValueError, match="not divisible by 4 pixels per code; resize it"):
        codec.encode(pictures(*shape))


def test_every_parameter_learns_through_the_codes(codec):
    graph, state = nnx.split(codec)
    x = pictures(1, 8, 8)
    gradients = jax.jit(jax.grad(lambda state: jnp.mean((nnx.merge(graph, state)(x) - x) ** 2)))(state)
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) > 0
