"""Random changes: the same key gives the same bits, and what a picture or a sound must keep is kept."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from geminid.train import augment

pytestmark = pytest.mark.usefixtures("quick_compiles")
FRAMES = np.array([40, 23, 7, 1], np.int32)
FLOOR = np.log(1e-3)


@pytest.fixture(scope="module", params=["pictures", "codec_pictures"])
def change(request):
    return jax.jit(getattr(augment, request.param))


@pytest.fixture(scope="module")
def change_mels():
    return jax.jit(augment.mels)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def mels() -> np.ndarray:
    """Log-mels as batches hold them: 0 after the last frame."""
    x = np.random.default_rng(1).uniform(FLOOR, 1.0, (4, 40, 16)).astype(np.float32)
    return np.where(np.arange(40)[None, :, None] < FRAMES[:, None, None], x, 0.0)


def test_pictures_keep_shape_range_and_white(change, pictures):
    white = np.ones_like(pictures)
    for seed in range(5):
        key = jax.random.key(seed)
        got = np.asarray(change(key, pictures))
        assert got.shape == pictures.shape and got.dtype == np.float32
        assert np.isfinite(got).all() and np.abs(got).max() <= 1
        assert np.asarray(change(key, white)).mean() > 0.8


def test_the_key_decides_how_pictures_change(change, pictures):
    once, again, other = (np.asarray(change(jax.random.key(seed), pictures)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (np.abs(once - other).max((1, 2, 3)) > 0).any()
    # each picture of a batch has its own luck
    same = np.asarray(change(jax.random.key(3), np.repeat(pictures[:1], 4, 0)))
    assert len({picture.tobytes() for picture in same}) > 1


def test_the_codec_sees_the_same_pixels_elsewhere(pictures):
    for seed in range(5):
        got = np.asarray(jax.jit(augment.codec_pictures)(jax.random.key(seed), pictures))
        for before, after in zip(pictures, got, strict=True):
            # a pixel moves as a whole, and its channels in one order for the whole picture
            assert sorted(map(tuple, np.sort(before.reshape(-1, 3), 1))) == sorted(
                map(tuple, np.sort(after.reshape(-1, 3), 1))
            )


def test_a_dot_stays_a_dot():
    dots = np.ones((4, 16, 16, 3), np.float32)
    dots[:, 8, 8] = -1
    change = jax.jit(augment.pictures)
    ink = 1 - np.concatenate([change(jax.random.key(seed), dots) for seed in range(16)]).mean(-1)
    assert (ink > 0.6).sum((1, 2)).max() <= 9
    assert ((ink > 0.4).any((1, 2))).mean() > 0.5


def test_mels_keep_shape_and_have_frames(change_mels, mels):
    for seed in range(5):
        key = jax.random.key(seed)
        got, frames = map(np.asarray, change_mels(key, mels, FRAMES))
        assert got.shape == mels.shape and got.dtype == np.float32 and np.isfinite(got).all()
        assert frames.dtype == np.int32 and (frames >= 1).all() and (frames <= 40).all()
        assert (frames >= np.floor(FRAMES / 1.25)).all() and (frames <= np.ceil(FRAMES / 0.8)).all()
        again = change_mels(key, mels, FRAMES)
        np.testing.assert_array_equal(again[0], got)
        np.testing.assert_array_equal(again[1], frames)
    assert np.abs(np.asarray(change_mels(jax.random.key(9), mels, FRAMES)[0]) - got).max() > 0.1


def test_what_stands_after_a_clip_does_not_reach_into_it(change_mels, mels):
    silent = np.where(np.arange(40)[None, :, None] < FRAMES[:, None, None], mels, FLOOR).astype(np.float32)
    for seed in range(5):
        a, frames = map(np.asarray, change_mels(jax.random.key(seed), mels, FRAMES))
        b, _ = map(np.asarray, change_mels(jax.random.key(seed), silent, FRAMES))
        for row, count in enumerate(frames):
            np.testing.assert_allclose(a[row, :count], b[row, :count], atol=1e-5)
