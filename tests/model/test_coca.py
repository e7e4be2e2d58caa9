"""The names' logits and the caption loss against loops; what the captioner may look at."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from geminid.model.coca import CaptionHeads, caption_loss
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
TEXTS = np.array([[5, 3, 8, 2, 0, 0], [4, 7, 0, 0, 0, 0], [9, 1, 1, 6, 3, 2]])
LENGTHS = (TEXTS > 0).sum(1)


@pytest.fixture(scope="module")
def heads() -> CaptionHeads:
    return filled(lambda: CaptionHeads(11, 8, 6, 2, rngs=nnx.Rngs(0)), 0.5, seed=0)


@pytest.fixture(scope="module")
def name_logits(heads):
    return jax.jit(lambda pooled, names: heads.name_logits(pooled, names))


@pytest.fixture(scope="module")
def caption_logits(heads):
    jitted = jax.jit(lambda texts, soft: heads.caption_logits(texts, soft))
    return lambda texts, soft: np.asarray(jitted(texts, soft))


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)


def test_a_name_is_the_bag_of_its_ids(heads, name_logits, soft):
    words, project = (np.asarray(p[...], np.float64) for p in (heads.words, heads.project_input))
    names = np.concatenate([TEXTS, np.zeros((1, 6), int)])
    got = np.asarray(name_logits(soft[:, 0], names))
    assert got.shape == (3, 4)
    for n, pooled in enumerate(soft[:, 0]):
        for k, name in enumerate(names):
            expected = sum(float(pooled @ project @ words[i]) for i in name if i != 0)
            np.testing.assert_allclose(got[n, k], expected, atol=1e-4)
    assert not got[:, 3].any()  # nothing is said: no id, not even that of the padding, counts


def test_the_order_and_the_padding_of_a_name_do_not_matter(name_logits, soft):
    plain = np.asarray(name_logits(soft[:, 0], TEXTS))
    np.testing.assert_allclose(name_logits(soft[:, 0], TEXTS[:, ::-1]), plain, atol=1e-5)
    longer = np.pad(TEXTS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(name_logits(soft[:, 0], longer), plain, atol=1e-5)
    once = np.where(TEXTS == 1, [[0, 1, 0, 0, 0, 0]] * 3, TEXTS)  # an id that comes twice counts twice
    difference = np.abs(np.asarray(name_logits(soft[:, 0], once)) - plain)
    assert difference[:, 2].min() > 1e-3 and difference[:, :2].max() < 1e-5


def test_each_name_and_each_input_has_its_own_logit(name_logits, soft):
    plain = np.asarray(name_logits(soft[:, 0], TEXTS))
    np.testing.assert_allclose(name_logits(soft[::-1, 0], TEXTS[[2, 0, 1]]), plain[::-1][:, [2, 0, 1]], atol=1e-5)


def test_caption_loss_counts_present_ids_alone():
    logits = np.random.default_rng(3).standard_normal((3, 6, 11))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    parts = [log_p[n, t - 1, TEXTS[n, t]] for n in range(3) for t in range(1, 6) if TEXTS[n, t] > 0]
    assert len(parts) == 3 + 1 + 5
    np.testing.assert_allclose(jax.jit(caption_loss)(np.float32(logits), TEXTS), -np.mean(parts), rtol=1e-5)


@pytest.mark.parametrize("changed", range(6))
def test_a_caption_is_predicted_from_what_stands_before_it(caption_logits, soft, changed):
    caption = caption_logits(TEXTS, soft)
    assert caption.shape == (3, 6, 11)
    texts = TEXTS.copy()
    texts[:, changed] = 10
    other = caption_logits(texts, soft)
    np.testing.assert_array_equal(other[:, :changed], caption[:, :changed])
    assert (np.abs(other[:, changed:] - caption[:, changed:]).max(2) > 1e-3)[2].all()


def test_each_caption_sees_its_own_picture(caption_logits, soft):
    caption = caption_logits(TEXTS, soft)
    other = caption_logits(TEXTS, np.concatenate([soft[:1], soft[1:2] + 1, soft[2:]]))
    np.testing.assert_allclose(other[[0, 2]], caption[[0, 2]], atol=1e-5)
    assert (np.abs(other[1] - caption[1]).max(1) > 1e-3).all()  # from the first position on


def test_padding_of_a_caption_changes_nothing(caption_logits, soft):
    caption = caption_logits(TEXTS, soft)
    longer = caption_logits(np.pad(TEXTS, ((0, 0), (0, 2))), soft)
    shorter = caption_logits(TEXTS[:, :4], soft)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(longer[row, :length], caption[row, :length], atol=1e-5)
        np.testing.assert_allclose(shorter[row, : min(length, 4)], caption[row, : min(length, 4)], atol=1e-5)
    assert np.isfinite(longer).all()
