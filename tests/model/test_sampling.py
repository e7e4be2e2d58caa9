"""Writing and scoring against loops that read everything again for every id."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid import recipes
from geminid.config import AudioConfig, CodecConfig, DecoderConfig, VisionConfig
from geminid.evaluate.respondent import prefix_tree, stack_trees
from geminid.model.multimodal import Model, Sensed
from geminid.model.sampling import generate, score_tree
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
NUM_IDS, STEPS, ROWS = 14, 5, 16
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3], [2]]
RECIPE = dataclasses.replace(
    recipes.demo(),
    codec=CodecConfig(levels=(2, 2)),
    vision=VisionConfig(width=8, num_layers=1, num_heads=2),
    audio=AudioConfig(num_mels=8, conv_widths=(4,), width=8, num_layers=1, num_heads=2),
    decoder=DecoderConfig(
        num_layers=2,
        width=12,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_width=16,
        window=4,
        local_per_global=1,
        smear=True,
    ),
)
NOTHING = Sensed(np.zeros((0, 32, 32, 3), np.uint8), np.zeros((0, 32, 8), np.float32), np.zeros(0, np.int32))
ALLOWED = np.random.default_rng(4).random((STEPS, NUM_IDS)) < 0.5
ALLOWED[:, 0] = True
EVERYTHING = np.ones((4, STEPS, NUM_IDS), bool)


@pytest.fixture(scope="module")
def model() -> Model:
    return filled(lambda: Model(RECIPE, NUM_IDS, rngs=nnx.Rngs(0)), 0.4, seed=1)


@pytest.fixture(scope="module")
def read(model):
    """Prompts (at most 8 ids each) -> last states and context."""
    read = jax.jit(lambda ids, present: model.read(ids, *jnp.zeros((2, *ids.shape), int), present, NOTHING))

    def pad(prompts):
        ids = np.zeros((len(prompts), 8), np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return read(ids, np.arange(8) < np.array([[len(prompt)] for prompt in prompts]))

    return pad


@pytest.fixture(scope="module")
def write(model):
    """generate, compiled once for each temperature and guidance."""
    statics = ("temperature", "guidance")

    def run(last, context, allowed, key, temperature, guidance, stop, places=None):
        return generate(model, last, context, allowed, key, temperature, guidance, stop, places)

    return jax.jit(run, static_argnames=statics)


@pytest.fixture(scope="module")
def log_p(model):
    """At most 16 rows of at most 16 ids -> log-probabilities of each next id, [16 16 V]; no cache, no padding seen."""

    @jax.jit
    def whole(ids, places):
        positions = jnp.broadcast_to(jnp.arange(16), ids.shape)
        hidden = model(ids, jnp.zeros_like(ids), places, jnp.ones_like(ids), positions, NOTHING)
        return jax.nn.log_softmax(model.decoder.logits(hidden))

    def run(rows, places_of=None):
        ids, places = np.zeros((2, ROWS, 16), np.int32)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = row
            places[k, : len(row)] = 0 if places_of is None else places_of[k]
        return np.asarray(whole(ids, places))

    return run


def naive_greedy(log_p, prompts, allowed, guidance=1.0) -> np.ndarray:
    """The likeliest allowed id, one after another; for guidance the second half of the prompts has no condition."""
    rows = [list(prompt) for prompt in prompts]
    for t in range(STEPS):
        scores = log_p(rows)[np.arange(len(rows)), [len(row) - 1 for row in rows]]
        if guidance != 1.0:
            half = len(rows) // 2
            scores = np.tile(guidance * scores[:half] + (1 - guidance) * scores[half:], (2, 1))
        best = np.where(allowed[:, t], scores, -np.inf).argmax(-1)
        for row, one in zip(rows, best, strict=True):
            row.append(int(one))
    return np.array([row[-STEPS:] for row in rows])


def test_greedy_writing_is_the_loop_for_prompts_of_any_length(read, write, log_p):
    expected = naive_greedy(log_p, PROMPTS, EVERYTHING)
    got = write(*read(PROMPTS), EVERYTHING, jax.random.key(0), 0.0, 1.0, -1)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(expected, axis=0)) > 1 and len(np.unique(expected)) > 2
    # a grammar for each row
    allowed = np.random.default_rng(5).random((4, STEPS, NUM_IDS)) < 0.3
    allowed[..., 7] = True
    got = write(*read(PROMPTS), allowed, jax.random.key(0), 0.0, 1.0, -1)
    np.testing.assert_array_equal(got, naive_greedy(log_p, PROMPTS, allowed))


def test_each_id_of_an_image_is_told_where_the_next_one_stands(read, write, log_p):
    places = np.array([1, 2, 33, 34, 65], np.int32)
    expected = []
    for prompt in PROMPTS:
        row, stands = list(prompt), [0] * len(prompt)
        for place in places:
            row.append(int(log_p([row], [stands])[0, len(row) - 1].argmax()))
            stands.append(int(place))
        expected.append(row[-STEPS:])
    got = write(*read(PROMPTS), EVERYTHING, jax.random.key(0), 0.0, 1.0, -1, places)
    np.testing.assert_array_equal(got, expected)
    assert (np.array(expected) != naive_greedy(log_p, PROMPTS, EVERYTHING)).any()


def test_a_stopped_row_repeats_the_stop(read, write, log_p):
    free = naive_greedy(log_p, PROMPTS, EVERYTHING)
    for stop in (free[0, 1], free[1, 0]):
        got = np.asarray(write(*read(PROMPTS), EVERYTHING, jax.random.key(0), 0.0, 1.0, int(stop)))
        for row, wanted in zip(got, free, strict=True):
            at = np.argmax(np.append(wanted, stop) == stop)
            np.testing.assert_array_equal(row[: at + 1], wanted[: at + 1])
            assert (row[at:] == stop).all()


def test_without_guidance_the_other_half_does_not_matter(read, write):
    answers = [
        np.asarray(write(*read([*PROMPTS[:2], *others]), EVERYTHING, jax.random.key(0), 0.0, 1.0, -1))[:2]
        for others in ([[5], [6, 7]], [[9, 9, 9], [0]])
    ]
    np.testing.assert_array_equal(*answers)


def test_guidance_is_the_loop_over_both_halves(read, write, log_p):
    allowed = np.tile(ALLOWED, (4, 1, 1))
    expected = naive_greedy(log_p, PROMPTS, allowed, guidance=3.0)
    got = np.asarray(write(*read(PROMPTS), allowed, jax.random.key(0), 0.0, 3.0, -1))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got[:2], got[2:])
    assert (expected[:2] != naive_greedy(log_p, PROMPTS[:2], allowed[:2])).any()


def test_samples_keep_to_the_grammar_and_to_the_distribution(read, write, log_p):
    last, context = read(PROMPTS)
    num_keys = 500
    samples = [
        np.asarray(write(last, context, ALLOWED, jax.random.key(k), 1.5, 1.0, -1)) for k in range(num_keys)
    ]  # [keys rows steps]
    assert all(ALLOWED[np.arange(STEPS), sample].all() for sample in samples)
    scores = log_p(PROMPTS)[np.arange(4), [len(prompt) - 1 for prompt in PROMPTS]] / 1.5
    expected = np.where(ALLOWED[0], np.exp(scores), 0)
    expected /= expected.sum(1, keepdims=True)
    first = np.stack(samples)[:, :, 0]
    for row, p in enumerate(expected):
        share = np.bincount(first[:, row], minlength=NUM_IDS) / num_keys
        assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / num_keys) + 1e-9).all()


def test_the_same_key_writes_the_same_and_guided_halves_agree(read, write):
    last, context = read(PROMPTS)
    for guidance in (1.0, 2.0):
        once, again, other = (
            np.asarray(write(last, context, ALLOWED, jax.random.key(k), 1.5, guidance, -1)) for k in (7, 7, 8)
        )
        np.testing.assert_array_equal(once, again)
        assert (once != other).any()
    np.testing.assert_array_equal(once[:2], once[2:])


CANDIDATES = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4, unique=True
)


@given(CANDIDATES)
def test_a_prefix_tree_holds_each_beginning_once_and_each_candidate_whole(candidates):
    tree = prefix_tree(candidates)
    assert len(tree.next_ids) == len({c[:k] for c in candidates for k in range(1, len(c) + 1)})
    assert len(tree.ids) == len({c[:k] for c in candidates for k in range(1, len(c))})

    def beginning(node: int) -> tuple[int, ...]:
        """The ids from the root to a node, by its ancestors' depths."""
        path = np.flatnonzero(tree.ancestors[node])
        assert sorted(tree.depths[path]) == list(range(len(path)))
        return tuple(tree.ids[path[np.argsort(tree.depths[path])]])

    assert len({beginning(node) for node in range(len(tree.ids))}) == len(tree.ids)
    for candidate, edges in zip(candidates, tree.paths, strict=True):
        steps = {
            (*(beginning(tree.parents[edge]) if tree.parents[edge] >= 0 else ()), tree.next_ids[edge])
            for edge in np.flatnonzero(edges)
        }
        assert steps == {candidate[:k] for k in range(1, len(candidate) + 1)}


@settings(max_examples=8)
@given(st.lists(CANDIDATES, min_size=4, max_size=4))
def test_a_tree_scores_candidates_as_one_by_one(model, read, log_p, score, sets):
    trees = [prefix_tree(candidates) for candidates in sets]
    steps = np.asarray(score(*read(PROMPTS), stack_trees(trees)))
    pairs = [(row, candidate) for row, candidates in enumerate(sets) for candidate in candidates]
    table = log_p([[*PROMPTS[row], *candidate] for row, candidate in pairs])
    got = np.concatenate([tree.paths @ line[: len(tree.next_ids)] for tree, line in zip(trees, steps, strict=True)])
    for likelihood, (row, candidate), rows in zip(got, pairs, table, strict=False):
        begin = len(PROMPTS[row]) - 1
        expected = sum(rows[begin + k, one] for k, one in enumerate(candidate))
        np.testing.assert_allclose(likelihood, expected, atol=1e-4)


@pytest.fixture(scope="module")
def score(model):
    return jax.jit(lambda last, context, tree: score_tree(model, last, context, tree))
