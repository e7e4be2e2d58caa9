"""The towers by their definitions: brute force, published sizes, and what must not change an answer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.config import DecoderConfig
from geminid.model.picture_text import PictureProjection, picture_mask, picture_sources
from geminid.model.siglip import SiglipEncoder
from geminid.model.towers import PictureTextConfig, SiglipConfig, UsmConfig
from geminid.model.usm import CumulativeGroupNorm, LocalAttention, UsmEncoder
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
SMALL = UsmConfig(num_mels=8, subsample_widths=(4, 4), width=8, num_layers=2, num_heads=2, chunk=3, left=5)
FRAMES = 150


def brute_attention(attention: LocalAttention, x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """One query, one head, one key at a time, without chunks. x [N D], valid [N]."""
    config, width = attention.config, x.shape[1]
    size = width // config.num_heads
    q, k, v, place = (
        np.asarray(w[...], np.float64) for w in (attention.q, attention.k, attention.v, attention.position)
    )
    scale = np.log1p(np.exp(np.asarray(attention.per_dim_scale[...], np.float64))) / math.log(2) / math.sqrt(size)
    rates = [10_000 ** (-i / (width // 2 - 1)) for i in range(width // 2)]
    out = np.zeros_like(x, np.float64)
    for head in range(config.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            query, scores, seen = (x[i] @ q)[part] * scale, [], []
            for j in range(max(0, i - config.left + 1), min(len(x), i + config.right + 1)):
                if valid[j]:
                    angles = [(i - j) * rate for rate in rates]
                    signal = np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
                    score = query @ (x[j] @ k + signal @ place)[part]
                    scores.append(math.exp(config.logit_cap * math.tanh(score / config.logit_cap)))
                    seen.append((x[j] @ v)[part])
            if scores:
                out[i, part] = np.average(seen, axis=0, weights=scores)
    return out


@settings(max_examples=15)
@given(
    length=st.integers(1, 14),
    chunk=st.sampled_from([1, 3, 4, 20]),
    left=st.sampled_from([1, 2, 5]),
    right=st.sampled_from([0, 2]),
    start=st.integers(0, 3),
)
def test_chunked_attention_is_attention_to_near_keys(length, chunk, left, right, start):
    """Whatever the chunks are; a query without any valid key is left out, as its answer is thrown away."""
    config = UsmConfig(width=8, num_heads=2, chunk=chunk, left=left, right=right, logit_cap=2.0)
    attention = filled(lambda: LocalAttention(config, rngs=nnx.Rngs(0)), 0.5, seed=1)
    x = np.random.default_rng(length).normal(size=(1, length, 8)).astype(np.float32)
    valid = np.arange(length)[None] >= start
    got = np.asarray(nnx.jit(lambda m, *given: m(*given))(attention, jnp.asarray(x), jnp.asarray(valid)))[0]
    expected = brute_attention(attention, x[0], valid[0])
    np.testing.assert_allclose(got[valid[0]], expected[valid[0]], atol=2e-5)


@settings(max_examples=10)
@given(length=st.integers(1, 9), mels=st.integers(1, 4))
def test_the_cumulative_norm_knows_the_frames_so_far(length, mels):
    x = np.random.default_rng(length).normal(3.0, 2.0, (1, length, mels, 5)).astype(np.float32)
    norm = CumulativeGroupNorm(5, 1e-3)
    norm.scale[...] = jnp.arange(5.0)
    means = [x[0, : t + 1].mean(dtype=np.float64) for t in range(length)]
    for t in range(length):
        variance = np.mean([(x[0, i] - means[i]) ** 2 for i in range(t + 1)])
        expected = (x[0, t] - means[t]) / math.sqrt(variance + 1e-3) * np.arange(5)
        np.testing.assert_allclose(np.asarray(norm(x))[0, t], expected, atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def hear():
    return jax.jit(filled(lambda: UsmEncoder(SMALL, rngs=nnx.Rngs(0)), 0.4, seed=0))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(*shape, SMALL.num_mels)).astype(np.float32)


@settings(max_examples=25)
@given(frames=st.integers(1, FRAMES), change=st.integers(0, FRAMES - 1))
def test_soft_tokens_do_not_know_what_comes_later(hear, frames, change):
    """A state reads 7 frames from its first (two 3-frame convolutions of stride 2); every fourth is kept."""
    mels = noise(1, FRAMES)
    valid = np.arange(FRAMES)[None] < frames
    soft, kept = (np.asarray(part)[0] for part in hear(mels, valid))
    assert kept.sum() == -(-frames // 16)
    assert (soft[~kept] == 0).all()
    later = mels.copy()
    later[:, change:] += 1.0
    changed = np.asarray(hear(later, valid)[0])[0]
    first = 16 * np.arange(len(soft))
    np.testing.assert_array_equal(changed[first + 6 < change], soft[first + 6 < change])
    reads = kept & (first + 6 >= change) & (first <= change)  # the change lies in what the token reads itself
    assert np.all(np.abs(changed[reads] - soft[reads]).max(-1) > 0)


def test_a_clip_sounds_the_same_in_any_company(hear):
    mels = noise(3, FRAMES)
    valid = np.arange(FRAMES) < np.array([[150], [33], [90]])
    soft = np.asarray(hear(mels, valid)[0])
    np.testing.assert_allclose(hear(mels[::-1], valid[::-1])[0][::-1], soft, atol=1e-5)


def test_30_seconds_are_188_soft_tokens():
    """Gemma 3n's `audio_soft_tokens_per_image`: 100 frames a second, one token for 160 ms."""
    assert UsmConfig().num_soft_tokens(3000) == 188
    encoder = nnx.eval_shape(lambda: UsmEncoder(UsmConfig(), rngs=nnx.Rngs(0)))
    mels, valid = jax.ShapeDtypeStruct((1, 3000, 128), jnp.float32), jax.ShapeDtypeStruct((1, 3000), bool)
    soft, kept = nnx.eval_shape(lambda encoder, mels, valid: encoder(mels, valid), encoder, mels, valid)
    assert (soft.shape, kept.shape) == ((1, 188, 1536), (1, 188))


def test_the_picture_encoder_has_the_published_417_million_parameters():
    """Gemma team 2025 (arXiv 2503.19786), table 1: 417M of the vision encoder; 256 soft tokens a picture."""
    encoder = nnx.eval_shape(lambda: SiglipEncoder(SiglipConfig(), rngs=nnx.Rngs(0)))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param))]
    assert round(sum(sizes) / 1e6) == 417
    config = PictureTextConfig(DecoderConfig(width=64), SiglipConfig(), 100)
    projection = nnx.eval_shape(lambda: PictureProjection(config, rngs=nnx.Rngs(0)))
    picture = jax.ShapeDtypeStruct((1, 896, 896, 3), jnp.float32)
    states = nnx.eval_shape(lambda encoder, picture: encoder(picture), encoder, picture)
    assert states.shape == (1, 4096, 1152)
    soft = nnx.eval_shape(lambda projection, states: projection(states), projection, states)
    assert soft.shape == (1, 256, 64)


SEGMENTS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12)


@given(SEGMENTS)
def test_the_picture_mask_is_what_it_says(places):
    """Padding is segment 0; only padding sees nothing but itself."""
    segments, pictures = (np.array(part) for part in zip(*places, strict=True))
    got = np.asarray(picture_mask(jnp.asarray(segments)[None], jnp.asarray(pictures)[None]))[0]
    for i in range(len(places)):
        for j in range(len(places)):
            between = pictures[min(i, j) : max(i, j) + 1].all()  # one run of soft tokens
            may = segments[i] == segments[j] != 0 and (j <= i or between)
            assert got[i, j] == (may or i == j)


def test_places_and_pictures_must_fit():
    config = PictureTextConfig(DecoderConfig(), SiglipConfig(picture_size=28, patch=7), 10, picture_id=9, soft_grid=2)
    ids = np.array([[1, 9, 9, 9, 9, 2], [9, 9, 3, 9, 9, 0]])
    assert picture_sources(ids, 2, config).tolist() == [[0, 1, 2, 3, 4, 0], [5, 6, 0, 7, 8, 0]]
    with pytest.raises(ValueError, match=r"8 places .* but 3 pictures of 4 need 12; write that id 4 times"):
        picture_sources(ids, 3, config)
    with pytest.raises(ValueError, match=r"id 12 is not one of the model's 10; use this model's tokenizer"):
        picture_sources(np.where(ids == 3, 12, ids), 2, config)


def test_shapes_that_do_not_fit_are_one_line(hear):
    with pytest.raises(ValueError, match=r"mels of shape \(1, 9, 7\) .* \[clips, frames, 8\]"):
        hear(np.zeros((1, 9, 7), np.float32), np.ones((1, 9), bool))
    see = filled(lambda: SiglipEncoder(SiglipConfig(28, 7, 8, 8, 1, 2), rngs=nnx.Rngs(0)), 0.3, seed=0)
    with pytest.raises(ValueError, match=r"pictures of shape \(14, 28, 3\); this encoder takes \(28, 28, 3\)"):
        see(jnp.zeros((1, 14, 28, 3)))
