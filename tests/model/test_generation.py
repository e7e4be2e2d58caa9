"""Decoding with a cache of fixed size against the whole sequence read anew for every id; and how ids are chosen."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.config import DecoderConfig
from geminid.model.cache import LayerCache, Session, held
from geminid.model.decoder import Decoder
from geminid.model.generation import NOTHING, Sampling, Unstacked, advance, begin, choose, read, write
from geminid.model.matrices import ColumnTable, RowTable, Transposed, likeliest
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
NUM_IDS, ROWS, ROOM = 23, 3, 16
NO_STOPS = jnp.zeros(0, jnp.int32)
GROUPED = DecoderConfig(  # everything that Gemma has; the window is shorter than the prompts
    num_layers=3, width=12, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=20, window=3, local_per_global=1,
    query_scalar=11.0, rope_theta=1000.0, rope_stretch=3.0, local_rope_theta=50.0, post_norm=True,
    attention_soft_cap=2.0, logit_soft_cap=3.0,
)  # fmt: skip
MULTI_QUERY = dataclasses.replace(GROUPED, num_kv_heads=1, local_per_global=2, post_norm=False, logit_soft_cap=None)
GLOBAL = dataclasses.replace(GROUPED, window=None, num_kv_heads=4, attention_soft_cap=None)
CONFIGS = {"grouped": GROUPED, "multi_query": MULTI_QUERY, "global": GLOBAL}
STORES = {
    "as_it_is": (lambda name, weight: weight, ColumnTable.of),
    "rows": (lambda name, w: Transposed.of(w), RowTable),
}


def decoder_of(config: DecoderConfig) -> Decoder:
    return filled(lambda: Decoder(config, NUM_IDS, rngs=nnx.Rngs(0)), 0.5, seed=1)


@functools.cache
def full_pass(name: str):
    """jit: ids [B ROOM] -> hidden states and logits of every position, without any cache."""
    config = CONFIGS[name]
    graph, state = nnx.split(decoder_of(config))
    mask = jnp.tril(jnp.ones((1, ROOM, ROOM), bool))

    @jax.jit
    def run(ids):
        decoder = nnx.merge(graph, state)
        hidden, _ = decoder(decoder.embed(ids), jnp.arange(ROOM)[None], mask)
        return hidden, decoder.logits(hidden)

    return run


@functools.cache
def programs(name: str, store: str = "rows"):
    graph, state = nnx.split(Unstacked(decoder_of(CONFIGS[name]), *STORES[store]))

    def bound(function, *static):
        return functools.partial(
            jax.jit(lambda state, *a, **k: function(nnx.merge(graph, state), *a, **k), static_argnames=static), state
        )

    return {
        "read": bound(read, "fresh"),
        "advance": bound(advance),
        "begin": bound(begin, "candidates"),
        "write": bound(write, "steps", "candidates"),
    }


def sampling_of(rows: int = ROWS, temperature: float = 0.0, top_k: int = NUM_IDS, top_p: float = 1.0, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), rows)
    return Sampling(jnp.full(rows, temperature), jnp.full(rows, top_k), jnp.full(rows, top_p), keys)


def greedy_by_brute_force(name: str, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        row = np.zeros((1, ROOM), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(np.argmax(full_pass(name)(row)[1][0, len(ids) - 1])))
    return ids[len(prompt) :]


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_IDS, length).tolist() for length in lengths]


def padded(prompts: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, np.array([len(prompt) for prompt in prompts], np.int32)


def answers(name: str, store: str, prompts: list[list[int]], count: int, sampling=None, candidates=1, stops=NO_STOPS):
    """Ids of every answer [B count], the loop cut into two pieces."""
    run, sampling = programs(name, store), sampling or sampling_of()
    session = Session.empty(CONFIGS[name], len(prompts), ROOM)
    session = run["read"](session, *padded(prompts, 7), fresh=True)
    writing = run["begin"](session, sampling, jnp.full(len(prompts), count), stops, candidates=candidates)
    written = [np.asarray(writing.ids)[:, None]]
    for _ in range(2):
        writing, ids = run["write"](writing, sampling, stops, steps=(count - 1) // 2, candidates=candidates)
        written.append(ids)
    return np.concatenate(written, 1)


@pytest.mark.parametrize(("name", "store"), [("grouped", "rows"), ("multi_query", "as_it_is"), ("global", "rows")])
def test_greedy_decoding_is_the_whole_sequence_read_anew_for_every_id(name, store):
    prompts = prompts_of([7, 1, 4])
    got = answers(name, store, prompts, 9)
    expected = [greedy_by_brute_force(name, prompt, 9) for prompt in prompts]
    assert got.tolist() == expected
    assert len({tuple(row) for row in expected}) == ROWS


@settings(max_examples=25)
@given(
    counts=st.lists(st.lists(st.integers(0, 4), min_size=ROWS, max_size=ROWS), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("name", ["grouped", "multi_query"])
def test_a_prompt_read_in_pieces_of_any_lengths_has_the_states_of_one_pass(name, counts, seed):
    ids = np.random.default_rng(seed).integers(0, NUM_IDS, (ROWS, ROOM)).astype(np.int32)
    states = np.asarray(full_pass(name)(ids)[0])
    run, session = programs(name), Session.empty(CONFIGS[name], ROWS, ROOM)
    done = np.zeros(ROWS, int)
    first = np.maximum(counts[0], 1)  # a prompt holds at least one id
    for k, count in enumerate((first, np.array(counts[1]))):
        part = np.stack([row[at : at + 4] for row, at in zip(ids, done, strict=True)])
        session = run["read"](session, part, count, fresh=k == 0)
        done = done + count
        np.testing.assert_allclose(session.hidden, states[np.arange(ROWS), done - 1], atol=2e-5)
    for _ in range(4):  # and past the window, id by id; the last row rests
        alive = np.array([True, True, False])
        session = run["advance"](session, ids[np.arange(ROWS), done], alive)
        done = done + alive
        np.testing.assert_allclose(session.hidden[:2], states[np.arange(2), done[:2] - 1], atol=2e-5)
    np.testing.assert_array_equal(session.lengths, done)
    session = run["advance"](session, ids[np.arange(ROWS), done], np.ones(ROWS, bool))
    np.testing.assert_allclose(session.hidden[2], states[2, done[2]], atol=2e-5)  # rest has spoiled nothing


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
def test_a_ring_holds_the_last_positions(pieces):
    """Beside a list that keeps everything."""
    num_slots, wide = 4, 5
    empty = jnp.zeros((2, num_slots, 1, 1))
    cache, kept, lengths = LayerCache(empty, empty), [[], []], np.zeros(2, np.int32)
    for piece in pieces:
        new = np.array([[100 * b + len(kept[b]) + t for t in range(wide)] for b in range(2)], np.float32)
        cache = cache.extend(new[:, :, None, None], -new[:, :, None, None], lengths, np.array(piece))
        for b in range(2):
            kept[b] += new[b, : piece[b]].tolist()
        lengths = lengths + np.array(piece, np.int32)
    one = np.array([[100 * b + len(kept[b])] for b in range(2)], np.float32)
    cache = cache.append(one[..., None, None], -one[..., None, None], lengths)
    positions = np.asarray(held(num_slots, lengths + 1))
    for b in range(2):
        kept[b].append(float(one[b, 0]))
        last = range(max(0, len(kept[b]) - num_slots), len(kept[b]))
        assert sorted(q for q in positions[b].tolist() if q >= 0) == list(last)
        for slot, q in enumerate(positions[b]):
            if q >= 0:
                assert (cache.keys[b, slot, 0, 0], cache.values[b, slot, 0, 0]) == (kept[b][q], -kept[b][q])


def test_rows_end_at_their_stop_ids_and_at_their_number_of_ids():
    prompts = prompts_of([7, 1, 4])
    free = answers("grouped", "rows", prompts, 9)
    stop = int(free[0, 2])
    run = programs("grouped")
    session = run["read"](Session.empty(GROUPED, ROWS, ROOM), *padded(prompts, 7), fresh=True)
    left, stops = jnp.array([9, 4, 1]), jnp.array([stop])
    writing = run["begin"](session, sampling_of(), left, stops, candidates=1)
    writing, rest = run["write"](writing, sampling_of(), stops, steps=8, candidates=1)
    got = np.concatenate([np.asarray(session.lengths)[:, None] * 0 + free[:, :1], rest], 1)
    for row, ids, most in zip(got, free.tolist(), left.tolist(), strict=True):
        ids = ids[: ids.index(stop) + 1] if stop in ids else ids
        ids = ids[:most]
        assert row.tolist() == ids + [NOTHING] * (9 - len(ids))
    assert writing.left.tolist() == [0, 0, 0]


def test_an_answer_does_not_depend_on_its_neighbours():
    sampling = sampling_of(temperature=1.0)
    prompts = prompts_of([7, 1, 4])
    others = [prompts_of([2], seed=5)[0], prompts[1], prompts_of([6], seed=6)[0]]
    together = answers("grouped", "rows", prompts, 9, sampling, NUM_IDS)
    beside = answers(
        "grouped", "rows", others, 9, dataclasses.replace(sampling, top_p=jnp.array([0.1, 1, 0.5])), NUM_IDS
    )
    np.testing.assert_array_equal(together[1], beside[1])
    assert (together[0] != beside[0]).any()


def test_a_seed_repeats_an_answer_and_another_seed_gives_another():
    prompts = prompts_of([3, 3, 3])
    first = answers("grouped", "rows", prompts, 9, sampling_of(temperature=1.5, seed=1), NUM_IDS)
    again = answers("grouped", "rows", prompts, 9, sampling_of(temperature=1.5, seed=1), NUM_IDS)
    other = answers("grouped", "rows", prompts, 9, sampling_of(temperature=1.5, seed=2), NUM_IDS)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(1).all()


# --- choosing ---

LOGITS = np.array([2.0, -1.0, 1.0, 0.5, 3.0, 0.0, -2.0], np.float32)


@functools.partial(jax.jit, static_argnums=4)
def draw(temperature, top_k, top_p, seed, candidates):
    """4,000 draws, each at another time of one row."""
    key = jax.random.key(seed)
    one = Sampling(*(jnp.reshape(v, 1) for v in (temperature, top_k, top_p)), keys=key[None])
    best = likeliest(jnp.asarray(LOGITS[None]), candidates)
    return jax.vmap(lambda t: choose(*best, one, t[None])[0])(jnp.arange(4000))


def expected(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, top-k and nucleus, in float64."""
    order = np.argsort(-LOGITS)
    p = np.exp(LOGITS[order].astype(np.float64) / temperature)
    p[top_k:] = 0
    p /= p.sum()
    fewest = int(np.searchsorted(np.cumsum(p), top_p)) + 1
    p[fewest:] = 0
    out = np.zeros(len(LOGITS))
    out[order] = p / p.sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 7, 1.0), (0.5, 7, 1.0), (2.0, 3, 1.0), (1.0, 7, 0.7), (1.3, 5, 0.9), (1.0, 7, 1e-9), (1.0, 1, 1.0)],
)
def test_ids_are_drawn_as_often_as_they_should_be(temperature, top_k, top_p):
    want = expected(temperature, top_k, top_p)
    got = np.bincount(draw(temperature, top_k, top_p, 0, 7), minlength=7) / 4000
    assert (got[want == 0] == 0).all()
    # four standard deviations
    assert (np.abs(got - want) <= 4 * np.sqrt(want * (1 - want) / 4000) + 1e-12).all()


def test_fewer_candidates_change_nothing_where_top_k_is_smaller():
    np.testing.assert_array_equal(draw(1.0, 3, 0.95, 4, 7), draw(1.0, 3, 0.95, 4, 3))


def test_temperature_zero_takes_the_likeliest():
    assert set(draw(0.0, 7, 1.0, 0, 7).tolist()) == {4}
    assert set(draw(1.0, 7, 1.0, 0, 1).tolist()) == {4}
