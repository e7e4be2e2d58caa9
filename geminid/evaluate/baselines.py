"""Simple baselines that every figure of the report stands beside: nearest neighbours and chance.

They see exactly what the model may learn from (the same training pictures and clips) and learn nothing.
Plain numpy on plain arrays.

Letters: N training items (templates), M test items, S pixels a side, T frames, F features, D mels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 256  # test pictures compared at a time: bounds memory to _BLOCK * N distances


@dataclass(frozen=True)
class Nearest:
    """Answers of a nearest-neighbour baseline."""

    accuracy: float
    predictions: np.ndarray  # [M], labels


def pixel_1nn(
    train_pixels: np.ndarray, train_labels: np.ndarray, test_pixels: np.ndarray, test_labels: np.ndarray
) -> Nearest:
    """Each test picture gets the label of the training picture at the smallest Euclidean distance.

    uint8 [N, S, S, 3], [N], uint8 [M, S, S, 3], [M]. Ties go to the earlier training picture.
    """
    _check_templates(len(train_pixels), len(train_labels), len(test_pixels), len(test_labels))
    if train_pixels.shape[1:] != test_pixels.shape[1:]:
        raise ValueError(
            f"pictures to learn are {list(train_pixels.shape[1:])}, pictures to name {list(test_pixels.shape[1:])};"
            " render both at one size"
        )
    # whole numbers below 2^24 times the side squared: float64 keeps every distance exact
    train = train_pixels.reshape(len(train_pixels), -1).astype(np.float64)
    test = test_pixels.reshape(len(test_pixels), -1).astype(np.float64)
    train_norms = (train**2).sum(1)
    nearest = [
        (train_norms - 2.0 * (test[start : start + _BLOCK] @ train.T)).argmin(1)
        for start in range(0, len(test), _BLOCK)
    ]
    return _answers(np.asarray(train_labels)[np.concatenate(nearest)], test_labels)


def cepstra(log_mel: np.ndarray, *, num_coefficients: int = 13, stride: int = 4) -> np.ndarray:
    """Log-mel float32 [T, D] -> float32 [ceil(T / stride), 2 * num_coefficients], what dtw_1nn compares.

    Mel-frequency cepstra (DCT-II over mels, Davis & Mermelstein 1980) without the level (coefficient 0),
    averaged over `stride` frames (4 frames of 10 ms: 25 a second), each coefficient brought to mean 0 and
    variance 1 over the clip, which takes out voice and microphone; then their slopes over +-1 frame.
    """
    num_frames, num_mels = log_mel.shape
    if num_frames == 0 or num_coefficients >= num_mels:
        raise ValueError(f"log-mel is {num_frames} frames of {num_mels}; needs a frame and {num_coefficients + 1} mels")
    centres = np.arange(num_mels)[:, None] + 0.5
    cosines = np.sqrt(2 / num_mels) * np.cos(np.pi / num_mels * centres * np.arange(1, num_coefficients + 1))
    values = log_mel.astype(np.float64) @ cosines
    starts = np.arange(0, num_frames, stride)
    counts = np.minimum(stride, num_frames - starts)
    values = np.add.reduceat(values, starts, axis=0) / counts[:, None]
    values = (values - values.mean(0)) / (values.std(0) + 1e-3)
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    slopes = (padded[2:] - padded[:-2]) / 2
    return np.concatenate([values, slopes], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Templates:
    """Training clips side by side, ready to be compared with a test clip."""

    frames: np.ndarray  # float32 [F, L * N]: unit vectors, template frame j of template n at j * N + n
    lengths: np.ndarray  # int [N]

    @staticmethod
    def of(features: Sequence[np.ndarray]) -> Templates:
        """float32 [T, F] each; at least one, each with at least one frame."""
        lengths = np.array([len(clip) for clip in features])
        if len(lengths) == 0 or lengths.min() == 0:
            raise ValueError(
                f"{len(lengths)} templates, the shortest of {lengths.min(initial=0)} frames; none may be empty"
            )
        padded = np.zeros((lengths.max(), len(features), features[0].shape[1]), np.float32)
        for n, clip in enumerate(features):
            padded[: len(clip), n] = _unit(clip)
        return Templates(padded.reshape(-1, padded.shape[-1]).T.copy(), lengths)


def dtw_1nn(
    train_features: Sequence[np.ndarray],
    train_labels: np.ndarray,
    test_features: Sequence[np.ndarray],
    test_labels: np.ndarray,
    band: float = 0.2,
) -> Nearest:
    """Each test clip gets the label of the training clip at the smallest time warping distance.

    Features: float32 [T, F] a clip (see `cepstra`), T free; labels [N] and [M]; `band`: see `dtw_distances`.
    """
    _check_templates(len(train_features), len(train_labels), len(test_features), len(test_labels))
    templates = Templates.of(train_features)
    nearest = np.zeros(len(test_features), np.int64)
    outside, num_frames = np.zeros(0), -1
    for m in sorted(range(len(test_features)), key=lambda m: len(test_features[m])):
        if len(test_features[m]) != num_frames:  # the band depends on lengths only: found once a length
            num_frames = len(test_features[m])
            outside = _outside(num_frames, templates.lengths, band)
        nearest[m] = _distances(templates, test_features[m], outside).argmin()
    return _answers(np.asarray(train_labels)[nearest], test_labels)


def dtw_distances(templates: Templates, clip: np.ndarray, band: float) -> np.ndarray:
    """Dynamic time warping distance of a clip, float32 [T, F], to every template -> float32 [N].

    Local distance: 1 - cosine. Steps: (1, 0) and (0, 1) with weight 1, (1, 1) with weight 2, so that every
    path weighs T + L, by which the sum is divided (Sakoe & Chiba 1978, symmetric form, P = 0).
    Cell (i, j) is allowed if |i/(T-1) - j/(L-1)| <= band: a Sakoe-Chiba band along the diagonal, widened
    where no path would fit in it. With `band` 1 every cell is allowed.
    """
    return _distances(templates, clip, _outside(len(clip), templates.lengths, band))


def _outside(num_frames: int, lengths: np.ndarray, band: float) -> np.ndarray:
    """bool [T, L, N]: the cells that no path may touch, L the longest template."""
    if not 0 <= band <= 1:
        raise ValueError(f"band {band} is not a fraction of the clip; use a number between 0 and 1")
    i = np.arange(num_frames, dtype=np.float32)[:, None, None] / max(1, num_frames - 1)
    j = np.arange(lengths.max(), dtype=np.float32)[:, None] / np.maximum(1, lengths - 1).astype(np.float32)
    # rounding the diagonal to the shorter sequence's frames strays by half a frame
    shorter = np.maximum(1, np.minimum(num_frames, lengths) - 1)
    width = np.where(np.minimum(num_frames, lengths) == 1, 1.0, np.maximum(band, 0.5 / shorter))
    return np.abs(i - j) > width.astype(np.float32) + 1e-4


def _distances(templates: Templates, clip: np.ndarray, outside: np.ndarray) -> np.ndarray:
    lengths = templates.lengths
    num_frames, longest, num_templates = outside.shape
    local = (_unit(clip) @ templates.frames).reshape(num_frames, longest, num_templates)
    np.subtract(1.0, local, out=local)
    np.copyto(local, np.inf, where=outside)
    return _cheapest_paths(local, lengths) / (num_frames + lengths)


def _cheapest_paths(local: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Local distances [T, L, N], [N] -> [N], weight of the best path from (0, 0) to (T-1, lengths[n]-1).

    Goes over antidiagonals i + j = d: all cells of one, of all templates, need only the two before it.
    """
    num_frames, longest, num_templates = local.shape
    flat = local.reshape(num_frames * longest, num_templates)
    # row i + 1 of `before` is cell (i, d - 1 - i); row 0 and rows not on the antidiagonal stay inf
    before, earlier = np.full((2, num_frames + 1, num_templates), np.inf, np.float32)
    totals = np.full(num_templates, np.inf, np.float32)
    for d in range(num_frames + longest - 1):
        low, high = max(0, d - longest + 1), min(d, num_frames - 1)
        stop = high * longest + d - high + 1
        cost = flat[low * longest + d - low : stop : max(1, longest - 1)][: high - low + 1]
        now = np.full_like(before, np.inf)
        if d == 0:
            now[1] = 2.0 * cost[0]
        else:
            best = np.minimum(before[low : high + 1], before[low + 1 : high + 2])
            np.minimum(best, earlier[low : high + 1] + cost, out=best)
            np.add(best, cost, out=now[low + 1 : high + 2])
        ends = lengths - 1 == d - (num_frames - 1)
        totals[ends] = now[num_frames, ends]
        before, earlier = now, before
    return totals


def _unit(clip: np.ndarray) -> np.ndarray:
    """[T, F] -> float32 [T, F], each frame of length 1 (a frame of zeros stays zero)."""
    return (clip / np.maximum(np.linalg.norm(clip, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def chance(num_choices: int) -> float:
    """Accuracy of guessing evenly among `num_choices`."""
    if num_choices < 1:
        raise ValueError(f"{num_choices} choices; chance needs at least 1")
    return 1.0 / num_choices


def _answers(predictions: np.ndarray, labels: np.ndarray) -> Nearest:
    return Nearest(float((predictions == np.asarray(labels)).mean()), predictions)


def _check_templates(num_train: int, num_train_labels: int, num_test: int, num_test_labels: int) -> None:
    if num_train != num_train_labels or num_test != num_test_labels:
        raise ValueError(
            f"{num_train} training items with {num_train_labels} labels, {num_test} test items with"
            f" {num_test_labels} labels; give one label an item"
        )
    if num_train == 0 or num_test == 0:
        raise ValueError(f"{num_train} training and {num_test} test items; a baseline needs one of each")
