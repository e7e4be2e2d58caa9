"""The joint loss: packing must not change it, nor its gradients; its formula in numpy; who learns how fast."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid import recipes
from geminid.batches.packing import Shape, assemble
from geminid.config import AudioConfig, CodecConfig, DecoderConfig, VisionConfig
from geminid.document import Document, make_image, make_text, see_audio, see_image, see_text, tag
from geminid.model.multimodal import Model, Sensed
from geminid.overrides import override
from geminid.tokens.ids import IdSpace, special_names
from geminid.tokens.stream import Stream, Streamer
from geminid.train import joint
from geminid.train.params import named, params_of
from tests.helpers import Letters, filled

pytestmark = pytest.mark.usefixtures("quick_compiles")


RECIPE = dataclasses.replace(
    recipes.demo(),
    codec=CodecConfig(levels=(3, 3)),
    vision=VisionConfig(width=16, num_layers=1, num_heads=2),
    audio=AudioConfig(
        max_s=0.32, num_mels=8, conv_widths=(4, 4), width=16, num_layers=1, num_heads=2, conv_kernel=3, reduction=2
    ),
    decoder=DecoderConfig(
        num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=24,
        window=6, local_per_global=1, z_loss=0.02, smear=True,
    ),
)  # fmt: skip
SPACE = IdSpace(special_names(RECIPE), Letters(), RECIPE.codec.num_codes)  # type: ignore[arg-type]
SHAPE = Shape(
    rows=2, length=40, pictures=5, clips=3, picture_size=32, soft_per_picture=RECIPE.vision.num_soft_tokens,
    soft_per_clip=RECIPE.audio.num_soft_tokens, num_frames=RECIPE.audio.num_frames, num_mels=RECIPE.audio.num_mels,
    answers=30,  # a few more than there are
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return filled(lambda: Model(RECIPE, SPACE.size, rngs=nnx.Rngs(0)), 0.2, seed=1)


@pytest.fixture(scope="module")
def differentiate(model):
    """Batch -> ((loss, metrics), gradients)."""
    graph, state = nnx.split(model)

    def loss(state, batch):
        sensed = Sensed(batch["pictures"], batch["mels"], batch["frames"])
        return joint.next_id_loss(nnx.merge(graph, state), batch, sensed)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda batch: jax.tree.map(np.asarray, compiled(state, batch))


@pytest.fixture(scope="module")
def streams() -> list[Stream]:
    """Pictures, a drawing, sounds, several of each interleaved, and a document without any loss."""
    rng = np.random.default_rng(2)

    def picture():
        return see_image(rng.integers(0, 256, (32, 32, 3), np.uint8))

    def sound(frames: int):
        return see_audio(rng.standard_normal((frames, 8)).astype(np.float32) - 3)

    documents = [
        (picture(), tag("lang:en"), make_text("cat")),
        (tag("draw"), see_text("sun"), make_image(rng.integers(0, 9, (2, 3)))),
        (sound(17), make_text("dog")),
        (picture(), see_text("a"), sound(32), picture(), see_text("b"), sound(3), tag("lang:fr"), make_text("chat")),
        (picture(), see_text("xyz")),
        (see_text("ab"), make_text("cd")),
    ]
    streamer = Streamer(SPACE, RECIPE.vision, RECIPE.audio, code_weight=0.4)
    return [streamer(Document(segments, "test")) for segments in documents]


def packings(streams: list[Stream]) -> list[list[list[Stream]]]:
    a, b, c, d, e, f = streams
    return [[[a, b, c], [d, f]], [[f, c, b], [d, e]]]


def test_a_packed_row_is_the_weighted_sum_of_its_documents_alone(differentiate, streams):
    alone = {}
    for i, stream in enumerate(streams):
        (loss, _), gradients = differentiate(assemble([[stream], []], SHAPE, SPACE))
        alone[i] = stream.weights.sum(), loss, jax.tree.leaves(gradients)
    assert alone[4][0] == 0 and alone[4][1] == 0  # nothing to predict
    for rows in packings(streams):
        batch = assemble(rows, SHAPE, SPACE)
        assert (np.asarray(batch["segments"]).max(1) > 1).all()
        (loss, _), gradients = differentiate(batch)
        parts = [alone[next(i for i, s in enumerate(streams) if s is stream)] for row in rows for stream in row]
        total = sum(weight for weight, _, _ in parts)
        np.testing.assert_allclose(loss, sum(weight * value for weight, value, _ in parts) / total, rtol=1e-5)
        leaves = jax.tree.leaves(gradients)
        assert {name for name, leaf in named(nnx.to_pure_dict(gradients)).items() if not leaf.any()} == set()
        for k, leaf in enumerate(leaves):
            expected = sum(weight * grads[k] for weight, _, grads in parts) / total
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-5)


def test_without_the_borders_between_documents_the_loss_differs(differentiate, streams):
    batch = assemble(packings(streams)[0], SHAPE, SPACE)
    (loss, _), _ = differentiate(batch)
    merged = batch | {"segments": np.minimum(batch["segments"], 1)}
    assert abs(differentiate(merged)[0][0] - loss) > 1e-3


def test_empty_slots_and_padding_do_not_count(differentiate, streams):
    batch = assemble([[streams[0]], [streams[2]]], SHAPE, SPACE)
    (loss, _), gradients = differentiate(batch)
    rng = np.random.default_rng(3)
    noisy = {name: array.copy() for name, array in batch.items()}
    noisy["pictures"][1:] = rng.integers(0, 256, noisy["pictures"][1:].shape)
    noisy["mels"][1:] = rng.standard_normal(noisy["mels"][1:].shape)
    noisy["frames"][1:] = 20
    padding = batch["segments"] == 0
    noisy["ids"][padding] = rng.integers(0, SPACE.size, padding.sum())
    noisy["positions"][padding] = rng.integers(0, 40, padding.sum())
    (other, _), other_gradients = differentiate(noisy)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def neighbours(code: int, levels: tuple[int, ...], spread: float) -> np.ndarray:
    """The share of every code in the target of one, by a loop over all of them."""
    shares = []
    for other in range(np.prod(levels)):
        a, b, distance = code, other, 0
        for level in levels:
            distance += (a % level - b % level) ** 2
            a, b = a // level, b // level
        shares.append(np.exp(-0.5 * distance / spread**2))
    return np.array(shares) / np.sum(shares)


def test_the_loss_is_cross_entropy_and_z_loss():
    """On given logits, in float64: nll = log Z - logit, for codes of all neighbours in their shares; PaLM's penalty is
    z_loss * (log Z)^2."""
    rng = np.random.default_rng(4)
    num_codes, size = RECIPE.codec.num_codes, 30
    logits = 3 * rng.standard_normal((2, 7, size))
    weights = rng.choice([0.0, 0.4, 1.0], (2, 7))
    weights[:, 0] = 0.0  # nothing stands before
    ids = rng.integers(0, size, (2, 7))
    zeros = np.zeros_like(ids)

    class Given:
        recipe = RECIPE
        decoder = SimpleNamespace(logits=lambda hidden: hidden, embedding=np.zeros((size, 1)))

        def __call__(self, *_):
            return jnp.asarray(logits, jnp.float32)

    batch = dict.fromkeys(("sources", "segments", "positions", "places"), zeros)
    batch |= {"ids": ids, "weights": np.float32(weights)}
    batch["answers"] = np.append(np.flatnonzero(weights)[::-1], [0, 0])  # in any order, and two places left over
    got, metrics = jax.jit(lambda batch: joint.next_id_loss(Given(), batch, None))(batch)  # type: ignore[arg-type]
    loss = penalty = total = 0.0
    by_kind: dict[bool, list[float]] = {False: [], True: []}
    for row in range(2):
        for t in range(1, 7):
            log_z = np.log(np.exp(logits[row, t - 1]).sum())
            nll = log_z - logits[row, t - 1, ids[row, t]]
            code, goal = ids[row, t] - (size - num_codes), logits[row, t - 1, ids[row, t]]
            if code >= 0:
                goal = neighbours(code, RECIPE.codec.levels, 0.5) @ logits[row, t - 1, size - num_codes :]
            loss += weights[row, t] * (log_z - goal)
            penalty += weights[row, t] * 0.02 * log_z**2
            total += weights[row, t]
            if weights[row, t] > 0:
                by_kind[bool(ids[row, t] >= size - num_codes)].append(nll)
    np.testing.assert_allclose(got, (loss + penalty) / total, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_text"], np.mean(by_kind[False]), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_codes"], np.mean(by_kind[True]), rtol=1e-5)


@pytest.mark.parametrize("most", [0.0, 0.5, 1.0])
def test_answers_within_a_range_alone_are_misread_and_no_more_than_asked(most):
    begin, end, rows = 20, 40, 400
    rng = np.random.default_rng(0)
    ids, answers = rng.integers(0, 50, (rows, 64)), rng.random((rows, 64)) < 0.7
    run = jax.jit(joint.misread, static_argnums=(3, 4, 5))
    read = np.asarray(run(jax.random.key(0), ids, answers, begin, end, most))
    may = answers & (ids >= begin) & (ids < end)
    np.testing.assert_array_equal(read[~may], ids[~may])
    assert (read[may] >= begin).all() and (read[may] < end).all()
    changed = (read != ids) & may
    share = changed.sum() / may.sum()  # the mean of a uniform share; one in 20 is exchanged for itself
    assert abs(share - most / 2 * 19 / 20) < 0.02
    rate = changed.sum(1) / may.sum(1)
    assert rate.std() >= 0.9 * most * 12**-0.5 * 19 / 20  # rows differ as a uniform draw does


class Part(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones((2, 3)))


class Parts(nnx.Module):
    """Parameters where a model has them."""

    def __init__(self):
        self.decoder, self.vision, self.audio = Part(), Part(), Part()
        self.decoder.embedding = SimpleNamespace(shape=(SPACE.size, 3))
        self.vision_to_decoder, self.audio_to_decoder = Part(), Part()


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_pretrained_encoders_learn_at_their_own_rate(model, monkeypatch, rate):
    """With a loss whose gradient is 1 everywhere, every parameter moves alike, times its rate."""

    def linear(parts, batch, sensed, read):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(nnx.state(parts, nnx.Param))), {}

    monkeypatch.setattr(joint, "next_id_loss", linear)
    optimiser = "joint.stage.optimiser"
    recipe = override(RECIPE, [f"joint.encoder_rate={rate}", f"{optimiser}.learning_rate=0.1"])
    assert set(params_of(model)) == set(params_of(Parts())) | {"rows", "columns", "smear"}
    task = joint.joint_task(recipe, Parts())  # type: ignore[arg-type]
    batch = {"pictures": np.zeros((1, 32, 32, 3), np.uint8), "mels": np.zeros((1, 32, 8), np.float32)}
    batch |= {"frames": np.full(1, 32, np.int32), "ids": np.zeros((1, 4), np.int32), "weights": np.ones((1, 4))}
    state = task.state
    for _ in range(3):
        state, _ = task.step(state, batch, jax.random.key(0))
    moved = {name: 1 - np.asarray(part["weight"]) for name, part in state["params"].items()}
    assert moved["decoder"].min() > 1e-4
    for name in ("vision_to_decoder", "audio_to_decoder"):
        np.testing.assert_allclose(moved[name], moved["decoder"], rtol=1e-5)
    for name in ("vision", "audio"):
        np.testing.assert_allclose(moved[name], rate * moved["decoder"], rtol=1e-2)  # weight decay is near the same
        assert rate > 0 or not moved[name].any()
