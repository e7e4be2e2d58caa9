"""Moving stills: nothing but the picture's own colours and white, and always something that moves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geminid.batches.sprites import moving_sprite

SEEDS = st.integers(0, 2**32 - 1)
SIDE = 32


def patch(seed: int = 0, side: int = SIDE, border: int = 5) -> np.ndarray:
    """Random colours on white, without symmetry."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    inner = side - 2 * border
    pixels[border:-border, border:-border] = np.random.default_rng(seed).integers(0, 200, (inner, inner, 3))
    return pixels


def film(seed: int, pixels: np.ndarray, count: int = 4) -> list[np.ndarray]:
    return moving_sprite(np.random.default_rng(seed), pixels, count)


@given(SEEDS, st.sampled_from([8, 16, 32, 33]), st.integers(1, 9))
def test_shape_and_type(seed, side, count):
    frames = film(seed, patch(side=side, border=2), count)
    assert len(frames) == count
    assert all(frame.shape == (side, side, 3) and frame.dtype == np.uint8 for frame in frames)


@given(SEEDS)
def test_the_same_draw_gives_the_same_film_and_leaves_the_picture_alone(seed):
    pixels = patch()
    before = pixels.copy()
    assert (np.stack(film(seed, pixels)) == np.stack(film(seed, pixels))).all()
    assert (pixels == before).all()


@given(SEEDS)
def test_a_white_picture_stays_white(seed):
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    assert (np.stack(film(seed, white)) == 255).all()


@given(SEEDS)
def test_what_the_picture_leaves_free_is_white(seed):
    """One colour without border: every pixel is a blend of that colour and white, and no frame loses the picture."""
    frames = np.stack(film(seed, np.full((SIDE, SIDE, 3), (255, 155, 55), np.uint8)))
    red, green, blue = (255.0 - frames.reshape(-1, 3)).T
    assert not red.any()
    assert np.abs(blue - 2 * green).max() <= 1.5  # rounding to whole numbers
    assert (frames[..., 2] < 255).any((1, 2)).all()


@given(SEEDS)
def test_a_white_border_stays_white(seed):
    """A small patch in the middle never reaches the edge: it moves by at most 0.3 of the side."""
    frames = np.stack(film(seed, patch(border=14)))
    edge = np.ones((SIDE, SIDE), bool)
    edge[1:-1, 1:-1] = False
    assert (frames[:, edge] == 255).all()


def test_the_first_and_the_last_frame_differ():
    ends = {seed: film(seed, patch())[::3] for seed in range(600)}
    assert [seed for seed, (first, last) in ends.items() if (first == last).all()] == []


def test_the_films_are_of_several_kinds():
    """Ink that is kept (move, spin), ink that grows with the area (grow) and ink that fades in fourths (appear)."""
    gains = []
    for seed in range(200):
        first, *_, last = (255.0 - frame for frame in film(seed, patch(border=10)))
        gains.append(last.sum() / first.sum())
    appear = np.isclose(gains, 4, rtol=0.05)
    kept = np.isclose(gains, 1, rtol=0.02)
    assert 0.15 < appear.mean() < 0.35
    assert 0.4 < kept.mean() < 0.7
    assert all(0.95 < gain < (1 / 0.55) ** 2 * 1.15 for gain in np.array(gains)[~appear])
