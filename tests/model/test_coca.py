"""The contrastive and the caption loss against loops; what the heads may look at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.model.coca import CaptionHeads, caption_loss, contrastive_loss
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
TEXTS = np.array([[5, 3, 8, 2, 0, 0], [4, 7, 0, 0, 0, 0], [9, 1, 1, 6, 3, 2]])


@pytest.fixture(scope="module")
def heads():
    """jit: (texts, soft, pooled) -> unit vectors of the inputs and of the texts, caption logits."""
    made = filled(lambda: CaptionHeads(11, 8, 6, 2, rngs=nnx.Rngs(0)), 0.5, seed=0)
    return jax.jit(lambda texts, soft, pooled: (made.see(pooled), made.tell(texts), made.caption_logits(texts, soft)))


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)


def one_way(a, b, labels, scale, exclude_self) -> float:
    """Khosla et al. 2020, eq. 2, anchor by anchor."""
    losses = []
    for i in range(len(a)):
        others = [k for k in range(len(b)) if not (exclude_self and k == i)]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            partition = sum(np.exp(scale * a[i] @ b[k]) for k in others)
            losses.append(-np.mean([np.log(np.exp(scale * a[i] @ b[p]) / partition) for p in positives]))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 0], [0, 1, 2, 3, 4, 5], [7, 7, 7, 7, 7, 7]])
def test_contrastive_loss_is_the_loop(labels, exclude_self):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 6, 5))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    if exclude_self:
        b = a
    expected = (one_way(a, b, labels, 3.0, exclude_self) + one_way(b, a, labels, 3.0, exclude_self)) / 2
    loss = jax.jit(contrastive_loss, static_argnums=4)
    got = loss(jnp.float32(a), jnp.float32(b), jnp.asarray(labels), jnp.float32(3.0), exclude_self)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_caption_loss_counts_present_ids_alone():
    logits = np.random.default_rng(3).standard_normal((3, 6, 11))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    parts = [log_p[n, t - 1, TEXTS[n, t]] for n in range(3) for t in range(1, 6) if TEXTS[n, t] > 0]
    assert len(parts) == 3 + 1 + 5
    np.testing.assert_allclose(jax.jit(caption_loss)(np.float32(logits), TEXTS), -np.mean(parts), rtol=1e-5)


def test_vectors_have_length_one(heads, soft):
    seen, told, caption = heads(TEXTS, soft, soft[:, 0])
    assert caption.shape == (3, 6, 11)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(told, axis=1), 1, atol=1e-4)


def test_a_caption_is_predicted_from_what_stands_before_it(heads, soft):
    _, told, caption = map(np.asarray, heads(TEXTS, soft, soft[:, 0]))
    changed = TEXTS.copy()
    changed[:, 1] += 1
    _, other_told, other = map(np.asarray, heads(changed, soft, soft[:, 0]))
    np.testing.assert_array_equal(other[:, 0], caption[:, 0])
    assert (np.abs(other[:, 1] - caption[:, 1]).max(1) > 1e-3).all()
    assert (np.abs(other_told - told).max(1) > 1e-3).all()


def test_the_text_vector_does_not_see_the_picture_but_the_caption_does(heads, soft):
    seen, told, caption = map(np.asarray, heads(TEXTS, soft, soft[:, 0]))
    other_seen, other_told, other = map(np.asarray, heads(TEXTS, soft[::-1], soft[::-1, 0]))
    np.testing.assert_array_equal(other_told, told)
    np.testing.assert_allclose(other_seen, seen[::-1], atol=1e-6)
    assert np.abs(other[0] - caption[0]).max() > 1e-3


def test_padding_of_a_text_changes_nothing(heads, soft):
    _, told, caption = map(np.asarray, heads(TEXTS, soft, soft[:, 0]))
    short = np.asarray(heads(TEXTS[:, :4], soft, soft[:, 0])[1])
    np.testing.assert_allclose(short[:2], told[:2], atol=1e-5)
    assert np.isfinite(caption).all()
