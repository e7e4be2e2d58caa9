"""The judge learns what is there to learn, twice the same, and survives a trip to disk."""

from __future__ import annotations

import numpy as np
import pytest

from geminid.evaluate.judge import load_judge, train_judge


def shapes(rng: np.random.Generator, num: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a horizontal bar, a vertical bar, in any dark colour, on white: colour tells nothing."""
    labels = rng.integers(0, 3, num)
    y, x = np.mgrid[0:side, 0:side] / (side - 1) - 0.5
    masks = np.stack([x**2 + y**2 < 0.09, (abs(y) < 0.12) & (abs(x) < 0.42), (abs(x) < 0.12) & (abs(y) < 0.42)])
    colours = rng.integers(0, 160, (num, 1, 1, 3))
    return np.where(masks[labels][..., None], colours, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def judge():
    return train_judge(*shapes(np.random.default_rng(0), 96), 3, steps=40, seed=5, show_progress=False)


def test_learns_shapes_whatever_their_colour(judge):
    pixels, labels = shapes(np.random.default_rng(1), 200)
    assert (judge.predict(pixels) == labels).mean() >= 0.97


def test_judges_pictures_of_another_size(judge):
    pixels, labels = shapes(np.random.default_rng(2), 40, side=64)
    assert (judge.predict(pixels) == labels).mean() >= 0.9


def test_same_seed_same_scores_another_seed_others(judge):
    train = shapes(np.random.default_rng(0), 96)
    pixels, _ = shapes(np.random.default_rng(3), 20)
    again = train_judge(*train, 3, steps=40, seed=5, show_progress=False)
    other = train_judge(*train, 3, steps=40, seed=6, show_progress=False)
    np.testing.assert_array_equal(again.scores(pixels), judge.scores(pixels))
    assert not np.array_equal(other.scores(pixels), judge.scores(pixels))


def test_scores_are_log_probabilities_and_do_not_depend_on_the_company(judge):
    pixels, _ = shapes(np.random.default_rng(4), 300)  # more than one part
    scores = judge.scores(pixels)
    assert scores.shape == (300, 3)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(judge.scores(pixels[290:]), scores[290:])
    assert judge.predict(pixels[:0]).shape == (0,)


def test_saved_and_loaded_is_the_same(judge, tmp_path):
    pixels, _ = shapes(np.random.default_rng(5), 20)
    judge.save(tmp_path / "judge.npz")
    np.testing.assert_array_equal(load_judge(tmp_path / "judge.npz").scores(pixels), judge.scores(pixels))
    assert [path.name for path in tmp_path.iterdir()] == ["judge.npz"]


def test_a_broken_file_is_a_clear_error(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="not a saved judge"):
        load_judge(tmp_path / "text.npz")
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 half an archive")
    with pytest.raises(ValueError, match="not a saved judge"):
        load_judge(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="judge format -1"):
        load_judge(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "pixels, labels, steps, words",
    [
        (np.zeros((2, 32, 32, 3), np.uint8), np.array([0]), 1, "2 pictures and 1 labels"),
        (np.zeros((1, 32, 32, 3), np.uint8), np.array([3]), 1, "use 0 to 2"),
        (np.zeros((1, 32, 32, 3), np.float32), np.array([0]), 1, "float32"),
        (np.zeros((1, 32, 32, 3), np.uint8), np.array([0]), 0, "0 steps"),
    ],
)
def test_mistakes_are_clear(pixels, labels, steps, words):
    with pytest.raises(ValueError, match=words):
        train_judge(pixels, labels, 3, steps=steps, show_progress=False)
