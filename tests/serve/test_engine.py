"""The engine beside decoding by brute force, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.config import DecoderConfig
from geminid.model.decoder import Decoder
from geminid.model.generation import Unstacked
from geminid.serve import engine as engines
from geminid.serve.engine import Engine, Options, power_of_two
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
NUM_IDS, ROOM = 23, 64
CONFIG = DecoderConfig(
    num_layers=2, width=12, num_heads=2, num_kv_heads=1, head_dim=6, mlp_width=20, window=5, local_per_global=1
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return filled(lambda: Decoder(CONFIG, NUM_IDS, rngs=nnx.Rngs(0)), 0.5, seed=3)


@pytest.fixture(scope="module")
def engine(decoder) -> Engine:
    return Engine(Unstacked(decoder), NUM_IDS, max_length=ROOM)


@pytest.fixture(scope="module")
def greedy(decoder):
    """(prompt, count) -> the likeliest ids, the whole sequence read anew for each."""
    mask = jnp.tril(jnp.ones((1, ROOM, ROOM), bool))

    @jax.jit
    def logits(ids):
        return decoder.logits(decoder(decoder.embed(ids), jnp.arange(ROOM)[None], mask)[0])

    def run(prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            row = np.zeros((1, ROOM), np.int32)
            row[0, : len(ids)] = ids
            ids.append(int(np.argmax(logits(row)[0, len(ids) - 1])))
        return ids[len(prompt) :]

    return run


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_IDS, length).tolist() for length in lengths]


def test_prompts_of_unequal_lengths_are_answered_as_if_alone(engine, greedy, monkeypatch):
    monkeypatch.setattr(engines, "PROMPT_PIECES", (4, 8))  # the longest is read in three pieces
    prompts, counts = prompts_of(20, 3, 9), (12, 5, 1)
    got = engine.answer(prompts, [Options(max_new=count) for count in counts])
    assert got == [greedy(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]


def test_a_stream_is_the_answer_in_pieces(engine):
    prompts, options = prompts_of(4, 2), [Options(max_new=9), Options(max_new=3)]
    pieces = list(engine.stream(prompts, options, steps=4))
    assert [[len(row) for row in piece] for piece in pieces] == [[1, 1], [4, 2], [4, 0]]
    joined = [[i for piece in pieces for i in piece[row]] for row in range(2)]
    assert joined == engine.answer(prompts, options)


def test_an_answer_ends_before_its_stop_id(decoder, greedy):
    [prompt] = prompts_of(6)
    free = greedy(prompt, 12)
    stop = free[4]
    stopping = Engine(Unstacked(decoder), NUM_IDS, stops=[stop])
    assert stopping.answer([prompt], [Options(max_new=12)]) == [free[: free.index(stop)]]


def test_a_seed_gives_the_same_answer_beside_any_neighbours(engine):
    drawn = Options(max_new=10, temperature=1.5, seed=7)
    a, b, c = prompts_of(5, 3, 6)
    [first], [again] = engine.answer([a], [drawn]), engine.answer([a], [drawn])
    others = Options(max_new=9), Options(max_new=5, temperature=0.7, top_k=3, top_p=0.5)
    beside = engine.answer([b, a, c], [others[0], drawn, others[1]])[1]
    [other] = engine.answer([a], [Options(max_new=10, temperature=1.5, seed=8)])
    assert first == again == beside != other


def test_top_k_of_one_is_greedy(engine):
    [prompt] = prompts_of(5)
    drawn = engine.answer([prompt], [Options(max_new=8, temperature=2.0, top_k=1)])
    assert drawn == engine.answer([prompt], [Options(max_new=8)])


@pytest.mark.parametrize(
    ("prompts", "options", "line"),
    [
        ([], [], "0 prompts and 0 options"),
        ([[1], [2]], [Options()], "2 prompts and 1 options"),
        ([[]], [Options()], "a prompt is empty"),
        ([[1, 23]], [Options()], "id 23 is outside the 23 ids"),
        ([[-1]], [Options()], "id -1 is outside"),
        ([[1] * 60], [Options(max_new=5)], "60 ids of a prompt and 5 to write do not fit 64 positions"),
    ],
)
def test_what_cannot_be_answered_is_one_line(engine, prompts, options, line):
    with pytest.raises(ValueError, match=line) as caught:
        next(engine.stream(prompts, options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"max_new": 0}, "0 ids"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_outside_their_range_are_refused(values, line):
    with pytest.raises(ValueError, match=line):
        Options(**values)


def test_power_of_two():
    assert [power_of_two(n) for n in (0, 1, 2, 3, 8, 9)] == [1, 1, 2, 4, 8, 16]
