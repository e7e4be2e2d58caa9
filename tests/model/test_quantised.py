"""Weights in few bits against numpy, and the screened embedding against the whole one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.config import DecoderConfig
from geminid.model.decoder import Decoder
from geminid.model.quantised import Quantised, QuantisedTable
from geminid.model.screened import ScreenedTable
from geminid.model.stored import Bits, prepared
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
times = jax.jit(lambda weight, x: weight.times(x))
best = jax.jit(lambda table, hidden, count: table.best(hidden, count), static_argnums=2)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (1, 1)])
@pytest.mark.parametrize("shape", [(64, 256), (96, 24)])
def test_a_product_is_that_of_the_rounded_weight(bits, rows, shape):
    weight, x = Quantised.of(jnp.asarray(normal(*shape)), bits), normal(*rows, shape[0], seed=1)
    np.testing.assert_allclose(times(weight, x), x @ np.asarray(weight.numbers(), np.float64).T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("bits", "group", "steps"), [(8, 128, 127.5), (4, 32, 7.5)])
def test_rounding_takes_away_at_most_half_a_step(bits, group, steps):
    """A step is the largest of a group / (the greatest whole number + 1/2)."""
    weight = normal(128, 64)
    made = Quantised.of(jnp.asarray(weight), bits)
    error = np.abs(np.asarray(made.numbers()) - weight.T).reshape(64, -1, group)
    step = np.abs(weight.T).reshape(64, -1, group).max(-1, keepdims=True) / steps
    assert (error <= 0.5001 * step).all()
    assert made.values.nbytes == weight.size * bits // 8


def test_bits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="weights of 3 bits are not known; use 8 or 4"):
        Quantised.of(jnp.zeros((32, 4)), 3)
    with pytest.raises(ValueError, match="48 inputs are not a multiple of 32"):
        Quantised.of(jnp.zeros((48, 4)), 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_embedding_gives_the_same_numbers_by_rows_and_as_a_whole(bits):
    table = QuantisedTable.of(jnp.asarray(normal(50, 32)), bits)
    ids = jnp.array([[3, 49], [0, 3]])
    numbers = np.asarray(table.rows(jnp.arange(50)))
    np.testing.assert_array_equal(table.rows(ids), numbers[np.asarray(ids)])
    hidden = normal(2, 32, seed=4)
    # with 8 bits activations are rounded to half a 254th of a 127th of the largest (Cauchy and Schwarz for the sum)
    lost = np.sqrt(32) * np.abs(hidden).max() / 127 / 254 / 2 if bits == 8 else 0.0
    tolerance = 1e-5 + lost * np.linalg.norm(numbers, axis=1).max()
    np.testing.assert_allclose(jax.jit(QuantisedTable.scores)(table, hidden), hidden @ numbers.T, atol=tolerance)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), flat=st.sampled_from([1.0, 1e-3, 0.0]), count=st.sampled_from([1, 5]))
def test_the_screened_embedding_finds_what_the_whole_one_does(seed, flat, count):
    """Also where rows are so alike that nothing can be proved and the whole embedding is read."""
    weight = normal(1, 16, seed=seed) * (1 - flat) + flat * normal(8009, 16, seed=seed + 1)
    hidden = normal(2, 16, seed=seed + 2)
    table = ScreenedTable.of(jnp.asarray(weight))
    scores, ids = best(table, hidden, count)
    exact = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(scores, np.sort(exact, 1)[:, ::-1][:, :count], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, np.asarray(ids), 1), scores, rtol=1e-5, atol=1e-5)


def test_of_a_screened_embedding_a_few_blocks_are_read(monkeypatch):
    weight, hidden = normal(20_001, 16), normal(3, 16, seed=1)
    monkeypatch.setattr(ScreenedTable, "scores", lambda self, hidden: jnp.full((3, 20_001), jnp.nan))
    scores, ids = ScreenedTable.of(jnp.asarray(weight)).best(jnp.asarray(hidden), 4)
    exact = hidden @ weight.T
    np.testing.assert_array_equal(ids, np.argsort(-exact, 1, kind="stable")[:, :4])
    np.testing.assert_allclose(scores, -np.sort(-exact, 1)[:, :4], rtol=1e-5)


def test_the_first_of_equal_ids_is_taken():
    weight = normal(8009, 16)
    weight[[40, 4000, 8008]] = 9.0
    _, ids = ScreenedTable.of(jnp.asarray(weight)).best(jnp.ones((1, 16)), 1)
    assert int(ids[0, 0]) == 40


def test_the_bound_of_the_screen_is_never_below_a_score():
    weight, hidden = normal(700, 32), normal(40, 32, seed=1)
    table = ScreenedTable.of(jnp.asarray(weight))
    length = np.linalg.norm(hidden, axis=1, keepdims=True)
    coarse = np.asarray(times(table.coarse, hidden))
    exact = hidden.astype(np.float64) @ weight.T
    assert (np.abs(exact - coarse) <= np.asarray(table.margins) * length).all()


CONFIG = DecoderConfig(num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64)


def test_bits_are_chosen_per_module():
    decoder = filled(lambda: Decoder(CONFIG, 40, rngs=nnx.Rngs(0)), 0.3, seed=1)
    made = prepared(decoder, Bits(attention=None, mlp=4, embedding=8), rows=1)
    block = made.layers[1]
    assert block.attention.q.get_value().dtype == jnp.float32
    assert block.mlp.up.get_value().values.dtype == jnp.uint8
    assert made.table.get_value().weight.values.dtype == jnp.int8
    assert dataclasses.astuple(Bits.all(4)) == (4, 4, 8)
    hidden = normal(1, 32, seed=2)
    whole = prepared(decoder, Bits(), rows=1)
    for model, tolerance in ((made, 0.2), (whole, 1e-4)):
        got, _ = model.best(jnp.asarray(hidden), 1)
        want = float((hidden @ np.asarray(decoder.embedding[...]).T).max())
        assert abs(float(got[0, 0]) - want) < tolerance
