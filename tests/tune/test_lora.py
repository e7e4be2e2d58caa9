"""Adapters: what they leave alone, what they learn, what merging keeps; captions and who is held out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.config import DecoderConfig
from geminid.model.decoder import Decoder
from geminid.model.lora import TARGETS, adapt, merge, split_adapters
from geminid.tune.captions import captions
from geminid.tune.lora import Tuning, caption_loss, rows_of, tune
from geminid.tune.requests import TuneConfig
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = DecoderConfig(
    num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24, window=4, local_per_global=1,
    post_norm=True, scan_layers=True,
)  # fmt: skip
NUM_IDS = 40
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (3, 9)).astype(np.int32)
COUNTS = np.array([9, 4, 2], np.int32)
TEXTS = {
    "names": {lang: {f"thing {i}": f"{lang}{i}" for i in range(60)} for lang in ("en", "fr")},
    "descriptions": {"en": {"thing 1": ["A first thing."], "thing 2": ["en2"]}},
}


def decoder_of() -> Decoder:
    return filled(lambda: Decoder(CONFIG, NUM_IDS, rngs=nnx.Rngs(0)), 0.3, seed=1)


def losses(decoder: Decoder) -> np.ndarray:
    """Of every id after the first, in float64: a softmax over all ids."""
    mask = jnp.tril(jnp.ones((1, 9, 9), bool))
    hidden, _ = decoder(decoder.embed(jnp.asarray(IDS)), jnp.broadcast_to(jnp.arange(9), IDS.shape), mask)
    scores = np.asarray(decoder.logits(hidden), np.float64)[:, :-1]
    chosen = np.take_along_axis(scores, IDS[:, 1:, None], 2)[..., 0]
    return np.log(np.exp(scores).sum(-1)) - chosen


def test_the_loss_is_that_of_a_softmax_over_all_ids():
    total, count = jax.jit(lambda: caption_loss(decoder_of(), jnp.asarray(IDS), jnp.asarray(COUNTS)))()
    kept = np.arange(1, 9) < COUNTS[:, None]
    assert count == kept.sum()
    np.testing.assert_allclose(total, losses(decoder_of())[kept].sum(), rtol=1e-5)


def test_a_new_adapter_changes_nothing_and_a_merged_one_what_it_did():
    plain, adapted = decoder_of(), decoder_of()
    adapt(adapted, 3, 6.0, jax.random.key(0))
    np.testing.assert_allclose(losses(adapted), losses(plain), atol=1e-6)
    weight = next(node for path, node in nnx.iter_graph(adapted.layers) if path == ("mlp", "up"))
    value = weight.get_value()
    b = jnp.asarray(np.random.default_rng(2).standard_normal(value.b.shape), jnp.float32)
    weight.set_value(dataclasses.replace(value, b=b))
    with_adapter = losses(adapted)
    assert np.abs(with_adapter - losses(plain)).max() > 0.1
    expected = np.asarray(value.weight) + 2.0 * np.einsum("lir,lro->lio", value.a, b)
    merge(adapted)
    np.testing.assert_allclose(weight.get_value(), expected, atol=1e-5)
    np.testing.assert_allclose(losses(adapted), with_adapter, atol=1e-4)


def test_only_adapters_are_trained():
    tuning = Tuning(decoder_of(), TuneConfig(steps=4, rank=2, learning_rate=0.05, warmup_steps=1))
    assert len(tuning.adapters) == 2 * len(TARGETS)
    batch = jnp.asarray(IDS), jnp.asarray(COUNTS)
    first = tuning.loss([batch])
    for _ in range(4):
        tuning.step(*batch)
    assert tuning.loss([batch]) < first - 0.1
    before = jax.tree.leaves(split_adapters(nnx.state(decoder_of()))[1])
    learnt = tuning.loss([batch])
    merged = tuning.merged()
    after = nnx.to_pure_dict(nnx.state(merged))
    assert len(jax.tree.leaves(after)) == len(before)
    np.testing.assert_array_equal(after["embedding"], decoder_of().embedding[...])
    kept = np.arange(1, 9) < COUNTS[:, None]
    np.testing.assert_allclose(losses(merged)[kept].mean(), learnt, rtol=1e-4)


@pytest.mark.parametrize(("rank", "targets", "line"), [(0, TARGETS, "rank is 0"), (2, ("mlp/uq",), "mlp/uq")])
def test_what_cannot_be_adapted_is_refused(rank, targets, line):
    with pytest.raises(ValueError, match=line):
        adapt(decoder_of(), rank, 1.0, jax.random.key(0), targets)


def test_captions_name_and_describe_and_hold_concepts_out_in_all_languages():
    made = captions(TEXTS, ("en", "fr"))
    assert [c.text for c in made if c.concept in ("thing 1", "thing 2")] == [
        "thing 1 [en]: en1. A first thing.",
        "thing 2 [en]: en2.",
        "thing 1 [fr]: fr1.",
        "thing 2 [fr]: fr2.",
    ]
    held = {lang: {c.concept for c in made if c.held_out and c.language == lang} for lang in ("en", "fr")}
    assert held["en"] == held["fr"] and 2 <= len(held["en"]) <= 20
    with pytest.raises(ValueError, match="no names in xx; known: en, fr"):
        captions(TEXTS, ("en", "xx"))


def test_tuning_lowers_the_loss_of_captions_that_were_held_out():
    def encode(text: str) -> list[int]:
        return [1, *(3 + ord(letter) % 37 for letter in text), 2]

    config = TuneConfig(steps=12, batch=8, length=20, learning_rate=0.03, warmup_steps=2, evaluated=4)
    _, figures = tune(decoder_of(), captions(TEXTS, ("en", "fr")), encode, config)
    assert figures["loss_after"] < figures["loss_before"] - 0.5
    assert figures["by_language"].keys() == {"en", "fr"}


def test_rows_are_padded_and_cut():
    made = captions(TEXTS, ("en",))[:2]
    ids, counts = rows_of(made, lambda text: list(range(1, len(text) + 1)), 18)
    assert counts.tolist() == [min(len(c.text), 18) for c in made]
    assert (np.asarray(ids) > 0).sum(1).tolist() == counts.tolist()
