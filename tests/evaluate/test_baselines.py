"""Nearest neighbours and time warping against brute force; cepstra against SciPy's DCT."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct

from geminid.evaluate.baselines import Templates, cepstra, chance, dtw_1nn, dtw_distances, pixel_1nn

lengths = st.integers(1, 9)


def brute_force_dtw(a: np.ndarray, b: np.ndarray, band: float) -> float:
    """The definition, cell by cell: Sakoe & Chiba 1978, symmetric form."""

    def cosine_distance(x, y):
        return 1 - float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))

    shorter = min(len(a), len(b))
    width = 1.0 if shorter == 1 else max(band, 0.5 / (shorter - 1))

    @lru_cache(None)
    def cost(i: int, j: int) -> float:
        if i < 0 or j < 0 or abs(i / max(1, len(a) - 1) - j / max(1, len(b) - 1)) > width + 1e-4:
            return np.inf
        local = cosine_distance(a[i], b[j])
        if (i, j) == (0, 0):
            return 2 * local
        return min(cost(i - 1, j) + local, cost(i, j - 1) + local, cost(i - 1, j - 1) + 2 * local)

    return cost(len(a) - 1, len(b) - 1) / (len(a) + len(b))


@settings(max_examples=60, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=5), lengths, st.sampled_from([0.0, 0.1, 0.3, 1.0]), st.integers(0, 2**31))
def test_dtw_is_the_brute_force_minimum(template_lengths, length, band, seed):
    rng = np.random.default_rng(seed)
    templates = [rng.standard_normal((n, 4)).astype(np.float32) for n in template_lengths]
    clip = rng.standard_normal((length, 4)).astype(np.float32)
    got = dtw_distances(Templates.of(templates), clip, band)
    expected = [brute_force_dtw(clip, template, band) for template in templates]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dtw_forgives_tempo():
    rng = np.random.default_rng(0)
    clip = rng.standard_normal((12, 5)).astype(np.float32)
    slow = np.repeat(clip, 2, axis=0)
    uneven = np.repeat(clip, [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 1, 1], axis=0)
    assert dtw_distances(Templates.of([clip, slow, uneven]), clip, 0.3) == pytest.approx([0, 0, 0], abs=1e-6)


def test_dtw_1nn_picks_the_brute_force_neighbour():
    rng = np.random.default_rng(1)
    train = [rng.standard_normal((rng.integers(3, 12), 6)).astype(np.float32) for _ in range(14)]
    test = [rng.standard_normal((rng.integers(3, 12), 6)).astype(np.float32) for _ in range(9)]
    labels = rng.integers(0, 4, len(train))
    truth = rng.integers(0, 4, len(test))
    nearest = [int(np.argmin([brute_force_dtw(clip, template, 0.2) for template in train])) for clip in test]
    got = dtw_1nn(train, labels, test, truth, band=0.2)
    np.testing.assert_array_equal(got.predictions, labels[nearest])
    assert got.accuracy == pytest.approx(np.mean(labels[nearest] == truth))


def test_pixel_1nn_is_the_brute_force_neighbour():
    rng = np.random.default_rng(2)
    train = rng.integers(0, 256, (40, 5, 5, 3), np.uint8)
    test = rng.integers(0, 256, (300, 5, 5, 3), np.uint8)  # more than one block
    labels, truth = rng.integers(0, 7, 40), rng.integers(0, 7, 300)
    nearest = [np.argmin([((one.astype(int) - t.astype(int)) ** 2).sum() for t in train]) for one in test]
    got = pixel_1nn(train, labels, test, truth)
    np.testing.assert_array_equal(got.predictions, labels[nearest])
    assert got.accuracy == pytest.approx((labels[nearest] == truth).mean())
    assert pixel_1nn(train, labels, train, labels).accuracy == 1.0


def test_cepstra_are_a_dct_without_level():
    rng = np.random.default_rng(3)
    log_mel = rng.standard_normal((10, 32)).astype(np.float32)
    got = cepstra(log_mel, num_coefficients=6, stride=4)
    assert got.shape == (3, 12)
    assert got.dtype == np.float32
    plain = dct(log_mel, norm="ortho", axis=1)[:, 1:7]
    plain = np.stack([plain[0:4].mean(0), plain[4:8].mean(0), plain[8:].mean(0)])
    expected = (plain - plain.mean(0)) / (plain.std(0) + 1e-3)
    np.testing.assert_allclose(got[:, :6], expected, atol=1e-4)
    np.testing.assert_allclose(got[1, 6:], (expected[2] - expected[0]) / 2, atol=1e-4)
    # a louder or differently filtered recording is the same
    tilt = rng.standard_normal(32)
    np.testing.assert_allclose(cepstra(log_mel + 3 + tilt, num_coefficients=6), got, atol=1e-3)


def test_guessing():
    assert chance(178) == pytest.approx(1 / 178)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pixel_1nn(np.zeros((2, 4, 4, 3), np.uint8), [0], np.zeros((1, 4, 4, 3), np.uint8), [0]), "2 training"),
        (
            lambda: pixel_1nn(np.zeros((1, 4, 4, 3), np.uint8), [0], np.zeros((1, 8, 8, 3), np.uint8), [0]),
            "render both at one size",
        ),
        (lambda: dtw_1nn([], [], [np.zeros((1, 2))], [0]), "0 training"),
        (lambda: dtw_1nn([np.ones((3, 2))], [0], [np.ones((3, 2))], [0], band=2.0), "between 0 and 1"),
        (lambda: Templates.of([np.zeros((0, 3))]), "none may be empty"),
        (lambda: cepstra(np.zeros((0, 128))), "needs a frame"),
        (lambda: chance(0), "0 choices"),
    ],
)
def test_mistakes_are_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
