"""The encoders by what must not change their answers: neighbours in the batch, padding, and what comes after."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from geminid.config import AudioConfig, VisionConfig
from geminid.model import layers
from geminid.model.audio import AudioEncoder
from geminid.model.layers import EncoderBlock
from geminid.model.vision import VisionEncoder, resized, to_float
from geminid.tokens.ids import IdSpace
from geminid.tokens.stream import Streamer
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
VISION = VisionConfig(width=16, num_layers=1, num_heads=2)
AUDIO = AudioConfig(
    max_s=0.32, num_mels=8, conv_widths=(4, 4), width=16, num_layers=1, num_heads=2, conv_kernel=3, reduction=2
)  # 32 frames, 8 of them a soft token


@pytest.fixture(scope="module")
def see():
    return jax.jit(filled(lambda: VisionEncoder(VISION, rngs=nnx.Rngs(0)), 0.3, seed=0))


@pytest.fixture(scope="module")
def hear():
    """jit: (log-mels, frames) -> soft tokens, and one pooled vector per clip."""
    encoder = filled(lambda: AudioEncoder(AUDIO, rngs=nnx.Rngs(0)), 0.3, seed=0)
    return jax.jit(lambda mels, frames: (encoder(mels, frames), encoder.pool(*encoder.hear(mels, frames))))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


# --- pictures ---


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_stem_has_as_many_blocks_as_it_is_told(blocks):
    config = dataclasses.replace(VISION, stem_widths=(4,), num_layers=0, stem_blocks=blocks)
    encoder = filled(lambda: VisionEncoder(config, rngs=nnx.Rngs(0)), 0.3, seed=0)
    kernels = [x for x in jax.tree.leaves(nnx.state(encoder, nnx.Param)) if x.ndim == 4]
    assert len(kernels) == 2 + 2 * blocks
    assert encoder(np.asarray(to_float(pixels(1, 8, 8)))).shape == (1, 2, 16)


def test_pixels_become_minus_one_to_one():
    np.testing.assert_allclose(to_float(np.array([0, 51, 255], np.uint8)), [-1.0, -0.6, 1.0], atol=1e-6)


def test_a_picture_is_seen_the_same_in_any_company(see):
    pictures = np.asarray(to_float(pixels(3, 32, 32)))
    soft = np.asarray(see(pictures))
    assert soft.shape == (3, VISION.num_soft_tokens, VISION.width)
    assert np.isfinite(soft).all()
    np.testing.assert_allclose(see(pictures[::-1])[::-1], soft, atol=1e-5)
    changed = pictures.copy()
    changed[1] = 1.0  # white
    other = np.asarray(see(changed))
    np.testing.assert_allclose(other[[0, 2]], soft[[0, 2]], atol=1e-5)
    assert np.abs(other[1] - soft[1]).max() > 1e-2


def test_where_something_is_can_be_seen(see):
    pictures = np.ones((3, 32, 32, 3), np.float32)
    pictures[0, 2:10, 2:10] = pictures[1, 2:10, 22:30] = pictures[2, 22:30, 2:10] = -1
    soft = np.asarray(see(pictures))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(soft[a] - soft[b]).max() > 1e-3


def test_a_picture_need_not_be_square(see):
    soft = np.asarray(see(to_float(pixels(1, 32, 64))))
    assert soft.shape == (1, VISION.num_soft_tokens, VISION.width)
    assert np.isfinite(soft).all()


@pytest.mark.parametrize(("height", "width", "side"), [(16, 16, 4), (4, 4, 4), (40, 7, 13), (3, 5, 8), (1, 2, 1)])
def test_resized_is_jaxs_resize(height, width, side):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    wanted = jax.image.resize(x, (2, side, side, 3), "linear").reshape(2, side**2, 3)
    np.testing.assert_allclose(resized(x, side), wanted, atol=5e-6)


@pytest.mark.parametrize("shape", [(1, 33, 32), (1, 32, 31)])
def test_a_size_that_does_not_fit_is_refused(see, shape):
    with pytest.raises(ValueError, match=r"divisible|resize"):
        see(np.zeros((*shape, 3), np.float32))


# --- sounds ---


FRAMES = np.array([32, 17, 8, 1, 0], np.int32)


@pytest.fixture(scope="module")
def mels() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((len(FRAMES), 32, 8)).astype(np.float32) - 3


def test_a_clip_has_as_many_soft_tokens_as_the_stream_gives_it(hear, mels):
    streamer = Streamer(IdSpace((), None, 0), VISION, AUDIO)  # type: ignore[arg-type]
    for num_frames in range(1, 33, 5):
        frames = np.array([num_frames, min(num_frames + 1, 32), min(num_frames + 2, 32), 32, 40], np.int32)
        soft, pooled = map(np.asarray, hear(mels, frames))
        assert soft.shape == (5, AUDIO.num_soft_tokens, 16) and pooled.shape == (5, 16)
        filled = (soft != 0).any(-1)  # the rest of a slot is empty
        assert filled.sum(1).tolist() == [streamer.soft_tokens_of_clip(n) for n in frames]
        others = filled[:, :-1]
        assert filled[:, -1].all() and (np.sort(others, 1)[:, ::-1] == others).all()  # the last and the first ones


def test_what_stands_after_a_clip_is_not_heard(hear, mels):
    noise = mels.copy()
    for row, count in zip(noise, FRAMES, strict=True):
        row[count:] = 9.0
    plain, changed = hear(mels, FRAMES), hear(noise, FRAMES)
    for a, b in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()  # also of the clip without a frame


def test_a_clip_is_heard_the_same_in_any_company(hear, mels):
    soft, pooled = map(np.asarray, hear(mels, FRAMES))
    other = [np.asarray(a)[::-1] for a in hear(mels[::-1], FRAMES[::-1])]
    np.testing.assert_allclose(other[0], soft, atol=1e-5)
    np.testing.assert_allclose(other[1], pooled, atol=1e-5)
    others, lengths = 3 * mels[::-1] + 1, np.array([5, 17, 20, 32, 9], np.int32)
    others[1] = mels[1]
    soft_again, pooled_again = map(np.asarray, hear(others, lengths))
    np.testing.assert_allclose(soft_again[1], soft[1], atol=1e-5)
    np.testing.assert_allclose(pooled_again[1], pooled[1], atol=1e-5)
    assert min(np.abs(pooled_again[k] - pooled[k]).max() for k in (0, 2, 3, 4)) > 1e-3


def test_a_longer_slot_is_empty_at_its_end(hear, mels):
    """And only that: how a clip is heard depends on its slot's length, as group norm counts the silence after it.

    All slots of a recipe are equally long.
    """
    longer = np.concatenate([mels, np.full((len(mels), 16, 8), 7.0, np.float32)], 1)
    soft, pooled = map(np.asarray, hear(longer, FRAMES))
    assert soft.shape[1] == 6 + 1 and np.isfinite(soft).all() and np.isfinite(pooled).all()
    np.testing.assert_array_equal(soft[:, 4:6], 0)
    assert (soft[0, [0, 1, 2, 3, 6]] != 0).any(-1).all()


def test_the_global_token_is_the_pooled_vector_and_comes_last(hear, mels):
    soft, pooled = map(np.asarray, hear(mels, FRAMES))
    np.testing.assert_array_equal(soft[:, -1], pooled)


def test_pooling_takes_the_means_of_quarters():
    """np.array_split where quarters are equal; else the rule spelled out: state i of n is in quarter ceil(4 i / n)."""
    encoder = filled(lambda: AudioEncoder(AUDIO, rngs=nnx.Rngs(0)), 0.3, seed=0)
    states = np.random.default_rng(3).standard_normal((5, 12, 16)).astype(np.float32)
    counts = [12, 8, 4, 7, 1]
    valid = (np.arange(12) < np.array(counts)[:, None])[..., None]
    got = np.asarray(jax.jit(encoder.pool)(states, valid))
    for row, n in enumerate(counts):
        quarters = np.array_split(states[row, :n], 4)
        if n % 4:
            members = [[i for i in range(n) if -(-4 * (i + 1) // n) == q] for q in (1, 2, 3, 4)]
            quarters = [states[row, of] for of in members]
        means = [part.mean(0) if len(part) else np.zeros(16) for part in quarters]
        np.testing.assert_allclose(got[row], np.concatenate(means) @ np.asarray(encoder.gather[...]), atol=1e-5)


def test_each_clip_has_its_own_answer(hear, mels):
    soft, pooled = map(np.asarray, hear(mels, np.full(5, 32, np.int32)))
    assert min(np.abs(pooled[0] - row).max() for row in pooled[1:]) > 1e-3
    assert min(np.abs(soft[0] - row).max() for row in soft[1:]) > 1e-3


# --- many blocks ---


def test_scanned_blocks_are_the_same_blocks():
    """The large recipes' encoders are scanned; one after another gives the same output and gradients."""
    num = layers.SCANNED
    blocks = filled(lambda: layers.blocks_of(lambda rngs: EncoderBlock(8, 2, rngs=rngs), num, nnx.Rngs(0)), 0.3, seed=0)
    x = np.random.default_rng(2).normal(size=(1, 3, 8)).astype(np.float32)
    graph, weights = nnx.split(blocks)

    def scanned(weights: nnx.State, x: jax.Array) -> jax.Array:
        return (layers.through(nnx.merge(graph, weights), x) ** 2).sum()

    def unrolled(weights: nnx.State, x: jax.Array) -> jax.Array:
        for i in range(num):
            x = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], weights))(x)
        return (x**2).sum()

    assert "scan" in str(jax.make_jaxpr(scanned)(weights, x))
    assert {len(leaf) for leaf in jax.tree.leaves(weights)} == {num}
    got, wanted = (jax.jit(jax.value_and_grad(f))(weights, x) for f in (scanned, unrolled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)
