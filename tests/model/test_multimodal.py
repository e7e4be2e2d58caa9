"""The whole model: where soft tokens go, who sees whom, and that reading a prompt is the same pass."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from geminid import recipes
from geminid.config import AudioConfig, CodecConfig, DecoderConfig, VisionConfig
from geminid.model.multimodal import Model, Sensed, packed_mask
from geminid.tokens.ids import NUM_SIZES
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
NUM_IDS, LENGTH = 19, 14
RECIPE = dataclasses.replace(
    recipes.demo(),
    codec=CodecConfig(levels=(2, 2)),
    vision=VisionConfig(width=16, num_layers=1, num_heads=2),
    audio=AudioConfig(
        max_s=0.32, num_mels=8, conv_widths=(4, 4), width=16, num_layers=1, num_heads=2, conv_kernel=3, reduction=2
    ),
    decoder=DecoderConfig(
        num_layers=2, width=12, num_heads=2, head_dim=6, mlp_width=16, window=9, local_per_global=1, smear=True
    ),
)
PER_PICTURE, PER_CLIP = RECIPE.vision.num_soft_tokens, RECIPE.audio.num_soft_tokens
FIRST_CLIP = 1 + 2 * PER_PICTURE
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (2, LENGTH))
SOURCES = np.zeros_like(IDS)  # row 0: picture 0 at 2; row 1: clip 1 at 5, after it a part of picture 1
SOURCES[0, 2 : 2 + PER_PICTURE] = 1 + np.arange(PER_PICTURE)
SOURCES[1, 5 : 5 + PER_CLIP] = FIRST_CLIP + PER_CLIP + np.arange(PER_CLIP)
SOURCES[1, 11] = 1 + PER_PICTURE
POSITIONS = np.broadcast_to(np.arange(LENGTH), IDS.shape)
PLACES = np.zeros_like(IDS)  # row 1 writes an image from 2 on: the next codes stand in row 0 and in row 1
PLACES[1, 2:5] = [1, 2, 1 + NUM_SIZES]


@pytest.fixture(scope="module")
def model() -> Model:
    return filled(lambda: Model(RECIPE, NUM_IDS, rngs=nnx.Rngs(0)), 0.3, seed=1)


@pytest.fixture(scope="module")
def run(model):
    return jax.jit(lambda ids, sources, segments, sensed: model(ids, sources, PLACES, segments, POSITIONS, sensed))


def sensed(seed: int = 0) -> Sensed:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    return Sensed(pictures, rng.standard_normal((2, 32, 8)).astype(np.float32) - 3, np.array([9, 32], np.int32))


def test_soft_tokens_are_the_encoders_in_the_order_of_their_slots(model):

    @jax.jit
    def encode(both):
        seen = model.vision_to_decoder(model.vision(both.pictures / 127.5 - 1))
        heard = model.audio_to_decoder(model.audio(both.mels, both.frames))
        soft = model.soft_tokens(both)
        return soft, soft.at(np.arange(1 + 2 * PER_PICTURE + 2 * PER_CLIP)), seen, heard

    made, *arrays = encode(sensed())
    soft, seen, heard = map(np.asarray, arrays)
    np.testing.assert_allclose(soft[1:FIRST_CLIP], seen.reshape(-1, 12), atol=1e-5)
    np.testing.assert_allclose(soft[FIRST_CLIP:], heard.reshape(-1, 12), atol=1e-5)
    x = np.asarray(jax.jit(model.place)(IDS, SOURCES, PLACES, made))
    embedding, rows, columns = (np.asarray(p[...]) for p in (model.decoder.embedding, model.rows, model.columns))
    stands = {(1, 2): (0, 0), (1, 3): (0, 1), (1, 4): (1, 0)}
    for row, t in np.ndindex(IDS.shape):
        expected = soft[SOURCES[row, t]] if SOURCES[row, t] else embedding[IDS[row, t]] * np.sqrt(12)
        if (row, t) in stands:
            expected = expected + rows[stands[row, t][0]] + columns[stands[row, t][1]]
        np.testing.assert_allclose(x[row, t], expected, atol=1e-6)


def test_where_nothing_is_seen_or_heard_there_are_ids_alone(model):
    no_clips = dataclasses.replace(sensed(), mels=np.zeros((0, 32, 8), np.float32), frames=np.zeros(0, np.int32))
    nothing = dataclasses.replace(no_clips, pictures=np.zeros((0, 32, 32, 3), np.uint8))
    place = jax.jit(lambda sources, sensed: model.place(IDS, sources, PLACES, model.soft_tokens(sensed)))
    np.testing.assert_array_equal(place(SOURCES * 0, nothing), place(SOURCES * 0, sensed()))
    pictures = np.where(SOURCES < FIRST_CLIP, SOURCES, 0)
    np.testing.assert_array_equal(place(pictures, no_clips), place(pictures, sensed()))


def test_the_mask_is_causal_within_a_document():
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    got = np.asarray(jax.jit(packed_mask)(segments))
    for b, t, s in np.ndindex(got.shape):
        inside = segments[b, t] == segments[b, s] != 0
        assert got[b, t, s] == (s == t or (inside and s <= t))


def test_what_is_seen_and_heard_changes_what_comes_after_it_alone(run):
    ones = np.ones_like(IDS)
    plain, other = sensed(), sensed(1)
    before = np.asarray(run(IDS, SOURCES, ones, plain))
    for changed, row, first in (
        (dataclasses.replace(plain, pictures=np.stack([other.pictures[0], plain.pictures[1]])), 0, 2),
        (dataclasses.replace(plain, pictures=np.stack([plain.pictures[0], other.pictures[1]])), 1, 11),
        (dataclasses.replace(plain, mels=np.stack([plain.mels[0], other.mels[1]])), 1, 5),
        (dataclasses.replace(plain, mels=np.stack([other.mels[0], plain.mels[1]])), 0, LENGTH),  # nobody points at it
    ):
        difference = np.abs(np.asarray(run(IDS, SOURCES, ones, changed)) - before).max(-1)
        expected = np.zeros(IDS.shape, bool)
        expected[row, first:] = True
        np.testing.assert_array_equal(difference > 1e-4, expected)
        assert difference[~expected].max() <= 1e-5
    covered = np.where(SOURCES > 0, (IDS + 1) % NUM_IDS, IDS)  # an id under a soft token is not read
    np.testing.assert_array_equal(run(covered, SOURCES, ones, plain), before)


def test_reading_prompts_of_different_lengths_is_the_same_pass(model, run):
    lengths = np.array([8, LENGTH])
    present = np.arange(LENGTH) < lengths[:, None]
    read = jax.jit(model.read)
    last, context = read(IDS, SOURCES, PLACES, present, sensed())
    whole = np.asarray(run(IDS, SOURCES, np.ones_like(IDS), sensed()))
    np.testing.assert_allclose(last, whole[[0, 1], lengths - 1], atol=1e-5)
    np.testing.assert_array_equal(context.positions, POSITIONS)
    np.testing.assert_array_equal(context.present, present)
    assert context.cache[0].shape == context.cache[1].shape == (2, 2, LENGTH, 1, 6)
    padded = np.where(present, IDS, (IDS + 3) % NUM_IDS)
    np.testing.assert_array_equal(read(padded, np.where(present, SOURCES, 1), PLACES, present, sensed())[0], last)
