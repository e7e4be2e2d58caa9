"""A rung: soft tokens made once stand for the encoders, every rung reads the same, and what is measured is plain."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from geminid import recipes
from geminid.batches.packing import PackedBatches, Shape
from geminid.config import AudioConfig, CodecConfig, DecoderConfig, VisionConfig
from geminid.document import Document, make_image, make_text, see_audio, see_image, see_text, tag
from geminid.model.multimodal import Model, Sensed
from geminid.model.vision import to_float
from geminid.plan.ladder import Rung, plan_rungs
from geminid.plan.rungs import FIRST_UNSEEN, Trainer, averaged
from geminid.tokens.ids import IdSpace, special_names
from geminid.tokens.stream import Stream, Streamer
from geminid.train import joint
from tests.helpers import Letters, filled

pytestmark = pytest.mark.usefixtures("quick_compiles")


RECIPE = dataclasses.replace(
    recipes.demo(),
    codec=CodecConfig(levels=(3, 3)),
    vision=VisionConfig(stem_widths=(4, 8), width=16, num_heads=2),
    audio=AudioConfig(
        max_s=0.32, num_mels=8, conv_widths=(4, 4), width=16, num_heads=2, conv_kernel=3, reduction=2
    ),
    decoder=DecoderConfig(num_layers=2, width=32, num_heads=2, head_dim=16, mlp_width=64, smear=True),
)  # fmt: skip
SPACE = IdSpace(special_names(RECIPE), Letters(), RECIPE.codec.num_codes)  # type: ignore[arg-type]
SHAPE = Shape(
    rows=2, length=40, pictures=5, clips=3, picture_size=32, soft_per_picture=RECIPE.vision.num_soft_tokens,
    soft_per_clip=RECIPE.audio.num_soft_tokens, num_frames=RECIPE.audio.num_frames, num_mels=RECIPE.audio.num_mels,
    answers=60,
)  # fmt: skip
STREAMER = Streamer(SPACE, RECIPE.vision, RECIPE.audio, code_weight=0.4)
RUNG = plan_rungs(RECIPE, [10, 30], 40).rungs[-1]


def stream_of(i: int) -> Stream:
    """A picture, a clip or a drawing of one of two things, which its answer names."""
    rng = np.random.default_rng(i)
    thing = int(rng.integers(2))
    picture = np.full((32, 32, 3), 255 * thing, np.uint8)
    mel = rng.standard_normal((20, 8)).astype(np.float32) + 3 * thing
    word = ("cat", "sun")[thing]
    codes = np.full((2, 3), 4 * thing + rng.integers(2))
    kinds = (
        (see_image(picture), tag("lang:en"), make_text(word)),
        (see_audio(mel), tag("lang:en"), make_text(word)),
        (tag("draw"), see_text(word), make_image(codes)),
    )
    return STREAMER(Document(kinds[rng.integers(3)], "test"))


@pytest.fixture(scope="module")
def whole() -> Model:
    """A model whose encoders the rungs read by."""
    return filled(lambda: joint.make_model(RECIPE, SPACE.size), 0.2, seed=1)


@pytest.fixture(scope="module")
def trainer(whole) -> Trainer:
    return Trainer(RECIPE, SPACE.size, PackedBatches(stream_of, SHAPE, SPACE, lookahead=6), whole)


@pytest.mark.slow
def test_a_rung_learns_and_repeats_to_the_bit(trainer):
    told: list[int] = []
    begun, ended = first = trainer(RUNG, told.append)
    assert told == list(range(1, 31)) and len(trainer.read) == 30
    assert (begun.rung, ended.rung) == RUNG.rows
    assert (begun.tokens, ended.tokens) == (10 * 2 * 40, 30 * 2 * 40)
    assert begun.params == ended.params == trainer.num_params(RUNG)
    assert ended.loss < 0.6 * np.log(SPACE.size) < begun.loss  # knowing nothing
    assert trainer(RUNG, told.append) == first
    assert len(trainer.read) == 30


def test_the_mean_of_the_weights_is_the_polynomial_one():
    """Step i of t weighs as the binomial coefficient of i + 7 over 8; of 1, 2, ..., t that mean is (9 t + 1) / 10."""
    mean = {"a": np.zeros(2, np.float32)}
    for i in range(1, 41):
        mean = averaged(mean, {"a": np.full(2, i, np.float32)}, i)
        weights = np.array([math.comb(k + 7, 8) for k in range(1, i + 1)], np.float64)
        expected = weights @ np.arange(1, i + 1) / weights.sum()
        assert expected == pytest.approx((9 * i + 1) / 10)
        np.testing.assert_allclose(mean["a"], expected, rtol=1e-5)


def test_the_size_is_what_the_rung_trains(trainer):
    width, heads, head_dim, mlp, layers = 20, 2, 10, 40, 2  # five eighths
    assert RUNG.decoder == dataclasses.replace(
        RECIPE.decoder, width=width, head_dim=head_dim, mlp_width=mlp, scan_layers=True
    )
    attention = width * head_dim * (heads + 1 + 1) + heads * head_dim * width + 2 * head_dim  # and the norms of q and k
    layer = attention + 3 * width * mlp + 2 * width
    projections = 2 * (16 * width + 16)
    smear = width * width + width
    places = 2 * 32 * width
    expected = SPACE.size * width + layers * layer + width + projections + smear + places
    assert trainer.num_params(RUNG) == expected


def test_what_is_measured_is_cross_entropy_of_documents_that_no_rung_reads(trainer, whole):
    """By the whole model, its encoders included, and in float64."""
    rung = Rung(RECIPE.decoder, (1,), 1e-3)
    params = nnx.to_pure_dict(nnx.state(whole, nnx.Param))
    got = trainer.losses(rung.decoder, {k: v for k, v in params.items() if k not in ("vision", "audio")})

    @jax.jit
    def logits(batch: dict) -> jax.Array:
        read = Sensed(to_float(batch["pictures"]), batch["mels"], batch["frames"])
        hidden = whole(*(batch[k] for k in ("ids", "sources", "places", "segments", "positions")), read)
        return whole.decoder.logits(hidden)

    sums = dict.fromkeys(("loss", "loss_text", "loss_codes"), np.zeros(2))
    batches = iter(PackedBatches(lambda i: stream_of(FIRST_UNSEEN + i), SHAPE, SPACE, lookahead=6))
    for _ in range(len(trainer.unseen)):
        batch = next(batches)
        weights, ids = batch["weights"][:, 1:].astype(np.float64), batch["ids"][:, 1:]
        scores = np.asarray(logits(batch), np.float64)[:, :-1]
        nll = np.logaddexp.reduce(scores, -1) - np.take_along_axis(scores, ids[..., None], -1)[..., 0]
        is_code = ids >= SPACE.size - RECIPE.codec.num_codes
        kinds = {"loss": weights, "loss_text": (weights > 0) & ~is_code, "loss_codes": (weights > 0) & is_code}
        for name, weight in kinds.items():
            sums[name] = sums[name] + (np.sum(weight * nll), np.sum(weight))
    for name, (total, amount) in sums.items():
        assert got[name] == pytest.approx(total / amount, rel=1e-4)


def test_training_reads_what_the_joint_stage_reads(trainer, whole):
    """Step 1's soft tokens are the encoders' of the same documents, changed by the same key."""
    batches = iter(PackedBatches(stream_of, SHAPE, SPACE, lookahead=6))
    next(batches)
    batch = next(batches)
    kept = trainer.batch(1)
    np.testing.assert_array_equal(kept["ids"], batch["ids"])

    @jax.jit
    def made(batch: dict) -> tuple[jax.Array, jax.Array]:
        seen = joint.augmented(jax.random.fold_in(jax.random.key(RECIPE.seed), 1), batch)
        return whole.vision(seen.pictures), whole.audio(seen.mels, seen.frames)

    for name, expected in zip(("pictures", "mels"), made(batch), strict=True):
        np.testing.assert_allclose(kept[name], expected, atol=1e-4)
