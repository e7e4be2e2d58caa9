"""The losses of the pretraining stages against loops in numpy, and what they must not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geminid.tokens.phones import PARTS
from geminid.train.pretrain import (
    CAPTION_WEIGHT,
    LABEL_SMOOTHING,
    LIKENESS_TEMPERATURE,
    PART_MARGIN,
    SILENCE,
    coca_loss,
    likeness_loss,
    spelling_loss,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")
RNG = np.random.default_rng(0)
INPUTS, NAMES, LENGTH, IDS = 8, 5, 4, 11


class GivenHeads:
    """Heads whose answers are given."""

    def __init__(self, scores: np.ndarray, captions: np.ndarray):
        self.scores, self.captions = jnp.asarray(scores), jnp.asarray(captions)

    def name_logits(self, pooled, names):
        return self.scores

    def caption_logits(self, texts, soft):
        return self.captions[: len(texts)]


def batch(allowed: np.ndarray) -> dict[str, np.ndarray]:
    texts = RNG.integers(1, IDS, (INPUTS, LENGTH))
    return {"labels": np.arange(INPUTS) % 2, "names": np.zeros((NAMES, 3), int), "allowed": allowed, "texts": texts}


def name_loss(scores: np.ndarray, labels: np.ndarray, allowed: np.ndarray) -> float:
    """Cross-entropy with smoothed labels, among each input's own candidates (Szegedy et al. 2016, section 7)."""
    losses = []
    for row, label, mine in zip(scores.astype(np.float64), labels, allowed, strict=True):
        among = np.flatnonzero(mine)
        log_p = row[among] - np.log(np.exp(row[among]).sum())
        right = log_p[list(among).index(label)]
        losses.append(-(1 - LABEL_SMOOTHING) * right - LABEL_SMOOTHING * log_p.mean())
    return float(np.mean(losses))


@pytest.mark.parametrize("restricted", [False, True])
def test_the_name_is_chosen_among_the_candidates_of_each_input(restricted):
    scores = 2 * RNG.standard_normal((INPUTS, NAMES)).astype(np.float32)
    allowed = np.ones((INPUTS, NAMES), bool)
    allowed[5:, 2:] = not restricted
    captions = RNG.standard_normal((INPUTS, LENGTH, IDS)).astype(np.float32)
    given = batch(allowed)
    pooled = np.zeros((INPUTS, 1))
    loss, metrics = coca_loss(GivenHeads(scores, captions), pooled[:, None], pooled, given)  # type: ignore[arg-type]
    np.testing.assert_allclose(metrics["loss_name"], name_loss(scores, given["labels"], allowed), rtol=1e-5)
    best = np.where(allowed, scores, -np.inf).argmax(1)
    np.testing.assert_allclose(metrics["right"], np.mean(best == given["labels"]), rtol=1e-6)
    part = INPUTS // 4
    log_p = captions - np.log(np.exp(captions).sum(-1, keepdims=True))
    told = [log_p[n, t - 1, given["texts"][n, t]] for n in range(part) for t in range(1, LENGTH)]
    np.testing.assert_allclose(metrics["loss_caption"], -np.mean(told), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss_name"] - CAPTION_WEIGHT * np.mean(told), rtol=1e-5)


def test_no_score_of_a_name_that_is_no_candidate_counts():
    allowed = np.ones((INPUTS, NAMES), bool)
    allowed[:, 3] = False
    captions = np.zeros((INPUTS, LENGTH, IDS), np.float32)
    given, pooled = batch(allowed), np.zeros((INPUTS, 1))

    def loss(scores):
        return coca_loss(GivenHeads(scores, captions), pooled[:, None], pooled, given)[0]  # type: ignore[arg-type]

    gradient = np.asarray(jax.grad(loss)(RNG.standard_normal((INPUTS, NAMES)).astype(np.float32)))
    assert (gradient[:, 3] == 0).all()
    assert (gradient[:, [0, 1, 2, 4]] != 0).all()


def test_likeness_is_the_supervised_contrast_of_khosla_et_al():
    """Their equation 2, over inputs that have another one of their label, by loops."""
    labels, pooled = np.array([0, 1, 0, 2, 1, 0]), RNG.standard_normal((6, 5)).astype(np.float32)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    similar, losses = np.exp(unit @ unit.T / LIKENESS_TEMPERATURE), []
    for i in range(6):
        others = [a for a in range(6) if a != i]
        alike = [p for p in others if labels[p] == labels[i]]
        if alike:
            losses.append(-np.mean([np.log(similar[i, p] / similar[i, others].sum()) for p in alike]))
    assert len(losses) == 5
    loss = jax.jit(likeness_loss)
    np.testing.assert_allclose(loss(pooled, labels), np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(loss(3 * pooled, labels), np.mean(losses), rtol=1e-4)  # directions alone count
    assert loss(pooled, np.arange(6)) == 0


def spelling_by_hand(logits: np.ndarray, valid: np.ndarray, phones: np.ndarray) -> float:
    total = 0.0
    for row, good, told in zip(logits.astype(np.float64), valid, phones, strict=True):
        heard = row[good]
        time = np.arange(1, len(heard) + 1) / len(heard)
        for part, (begin, end) in enumerate(PARTS):
            inside = (time > begin - PART_MARGIN) & (time <= end + PART_MARGIN)
            score = np.log(np.exp(heard[inside]).sum(0)) - SILENCE
            p = 1 / (1 + np.exp(-score))
            total -= np.sum(np.where(told[part], np.log(p), np.log(1 - p)))
    return total / phones.sum()


def test_spelling_is_the_soft_maximum_over_the_states_of_each_part():
    logits = RNG.standard_normal((3, 12, 6)).astype(np.float32)
    lengths = np.array([12, 9, 5])
    valid = np.arange(12) < lengths[:, None]
    phones = RNG.random((3, len(PARTS), 6)) < 0.3
    got = jax.jit(spelling_loss)(logits, valid, phones)
    np.testing.assert_allclose(got, spelling_by_hand(logits, valid, phones), rtol=1e-4)
    noisy = np.where(valid[..., None], logits, 50.0).astype(np.float32)
    np.testing.assert_allclose(jax.jit(spelling_loss)(noisy, valid, phones), got, rtol=1e-6)
