"""What the pretraining stages train: the image codec by reconstruction, the encoders by CoCa.

Each `*_task` gives the state to start from and the pure step of its stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from geminid.config import Recipe, StageConfig
from geminid.model.audio import AudioEncoder
from geminid.model.coca import CaptionHeads, caption_loss
from geminid.model.codec import ImageCodec
from geminid.model.layers import dense
from geminid.model.vision import VisionEncoder, to_float
from geminid.tokens.phones import NUM_PHONES, PARTS
from geminid.train import augment
from geminid.train.loop import State, Step
from geminid.train.optimiser import make_optimiser
from geminid.train.params import params_of

CAPTION_WEIGHT = 0.5  # beside 1 for the contrast; CoCa takes 2: on 182 concepts that learned half as fast
SPELLING_WEIGHT = 1.0
LIKENESS_WEIGHT, LIKENESS_TEMPERATURE = 1.0, 0.1
PART_MARGIN = 0.1  # of the word: phones are not equally long
SILENCE = 4.0  # a phone is absent unless a state is sure of it
CAPTIONED = 4  # one input in so many is captioned: a caption costs as much as its encoder
LABEL_SMOOTHING = 0.1
TEXT_WIDTH, TEXT_HEADS = 128, 4

Rate = Callable[[str], float]
Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Task:
    """The state a stage starts from, and its step."""

    state: State
    step: Step


class CaptionedEncoder(nnx.Module):
    """An encoder with CoCa's heads on it."""

    def __init__(self, encoder: nnx.Module, heads: CaptionHeads):
        self.encoder = encoder
        self.heads = heads


def make_task(module: nnx.Module, loss: Loss, config: StageConfig, rate_of: Rate = lambda _: 1.0) -> Task:
    """Gradient descent on `loss(module, batch, key) -> (loss, metrics)`.

    rate_of(path): factor on the learning rate of the parameter at that path; 0 freezes it.
    """
    optimiser = make_optimiser(config.optimiser, config.steps, rate_of)
    graph = nnx.graphdef(module)
    params = params_of(module)

    def hold(path: Any, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(x) if rate_of(jax.tree_util.keystr(path)) == 0 else x

    def of_params(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = jax.tree_util.tree_map_with_path(hold, params)
        return loss(nnx.merge(graph, nnx.State(params)), batch, key)

    @jax.jit(donate_argnums=0)
    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        (value, metrics), grads = jax.value_and_grad(of_params, has_aux=True)(state["params"], batch, key)
        updates, moments = optimiser.update(grads, state["optimiser"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "optimiser": moments}
        return new, {"loss": value, **metrics}

    return Task({"params": params, "optimiser": optimiser.init(params)}, step)


def make_codec(recipe: Recipe) -> ImageCodec:
    return ImageCodec(recipe.codec, rngs=nnx.Rngs(recipe.seed))


def codec_task(recipe: Recipe) -> Task:
    """Root mean squared error of each decoded picture: between MSE and PSNR in how much hard pictures weigh."""

    def loss(codec: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = augment.codec_pictures(key, to_float(batch["pictures"]))
        error = jnp.mean((codec(x) - x) ** 2, (1, 2, 3))
        psnr = 10 * jnp.log10(4.0 / error)  # peak to peak 2, squared
        return jnp.mean(jnp.sqrt(error + 1e-5)), {"psnr_db": jnp.mean(psnr)}

    return make_task(make_codec(recipe), loss, recipe.codec_stage)


def make_captioned_vision(recipe: Recipe, num_ids: int) -> CaptionedEncoder:
    rngs = nnx.Rngs(recipe.seed + 1)
    encoder = VisionEncoder(recipe.vision, rngs=rngs)
    return CaptionedEncoder(encoder, CaptionHeads(num_ids, TEXT_WIDTH, recipe.vision.width, TEXT_HEADS, rngs=rngs))


def coca_loss(
    heads: CaptionHeads, soft: jax.Array, pooled: jax.Array, batch: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The right name of each input among its candidates, and the caption of a quarter of the batch.

    The candidates are of batch["names"], int [labels T], those that batch["allowed"], bool [N labels], has, and not
    those of the batch alone: with a few thousand names every step may use every negative.
    """
    part, allowed = -(-len(pooled) // CAPTIONED), batch["allowed"]
    scores = jnp.where(allowed, heads.name_logits(pooled, batch["names"]), -1e9)
    wanted = jax.nn.one_hot(batch["labels"], len(batch["names"])) * (1 - LABEL_SMOOTHING)
    wanted = wanted + LABEL_SMOOTHING * allowed / allowed.sum(1, keepdims=True)
    to_name = optax.softmax_cross_entropy(scores, wanted).mean()
    words = caption_loss(heads.caption_logits(batch["texts"][:part], soft[:part]), batch["texts"][:part])
    right = jnp.mean(scores.argmax(1) == batch["labels"])
    return to_name + CAPTION_WEIGHT * words, {"loss_name": to_name, "loss_caption": words, "right": right}


def vision_task(recipe: Recipe, num_ids: int) -> Task:
    """CoCa on pictures."""

    def loss(module: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        soft = module.encoder(augment.pictures(key, to_float(batch["pictures"])))
        return coca_loss(module.heads, soft, soft[:, -1], batch)

    return make_task(make_captioned_vision(recipe, num_ids), loss, recipe.vision_stage)


class SpellingEncoder(CaptionedEncoder):
    """An audio encoder that also spells what it hears."""

    def __init__(self, encoder: AudioEncoder, heads: CaptionHeads, *, rngs: nnx.Rngs):
        super().__init__(encoder, heads)
        self.spell = dense(encoder.config.width, NUM_PHONES, rngs)


def spelling_loss(logits: jax.Array, valid: jax.Array, phones: jax.Array) -> jax.Array:
    """Which phones occur in which part of a word (PHOC: Almazan et al. 2014, PAMI 36(12)), for each phone told.

    logits [B n phones] of every state; valid bool [B n]; phones bool [B parts phones]. A part's logit is the
    soft maximum over its states: no alignment is needed, so it learns at once where CTC first learns to be silent.
    """
    time = jnp.cumsum(valid, 1) / jnp.maximum(valid.sum(1, keepdims=True), 1)  # (0, 1]
    begin, end = jnp.array(PARTS).T[:, :, None]
    inside = (time[:, None] > begin - PART_MARGIN) & (time[:, None] <= end + PART_MARGIN) & valid[:, None]
    heard = jax.nn.logsumexp(jnp.where(inside[..., None], logits[:, None], -1e9), 2)  # [B parts phones]
    losses = optax.sigmoid_binary_cross_entropy(heard - SILENCE, phones.astype(jnp.float32))
    return losses.sum() / jnp.maximum(phones.sum(), 1)


def likeness_loss(pooled: jax.Array, labels: jax.Array) -> jax.Array:
    """Supervised contrast (Khosla et al. 2020, arXiv 2004.11362): clips of one word are alike, whoever says it.

    pooled [N D]; labels int [N]. Inputs that are alone with their label have no part in it.
    """
    unit = pooled * jax.lax.rsqrt(jnp.sum(pooled**2, -1, keepdims=True) + 1e-6)
    itself = jnp.eye(len(labels), dtype=bool)
    scores = jnp.where(itself, -1e9, unit @ unit.T / LIKENESS_TEMPERATURE)
    alike = (labels[:, None] == labels) & ~itself
    chosen = jnp.where(alike, jax.nn.log_softmax(scores), 0.0).sum(1) / jnp.maximum(alike.sum(1), 1)
    return -chosen.sum() / jnp.maximum(alike.any(1).sum(), 1)


def make_captioned_audio(recipe: Recipe, num_ids: int) -> SpellingEncoder:
    rngs = nnx.Rngs(recipe.seed + 2)
    encoder = AudioEncoder(recipe.audio, rngs=rngs)
    heads = CaptionHeads(num_ids, TEXT_WIDTH, recipe.audio.width, TEXT_HEADS, rngs=rngs)
    return SpellingEncoder(encoder, heads, rngs=rngs)


def audio_task(recipe: Recipe, num_ids: int) -> Task:
    """CoCa on sounds, and their spelling: phones are shared by all words, so that rare words profit."""

    def loss(module: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        mels, frames = augment.mels(key, batch["mels"], batch["frames"])
        states, valid = module.encoder.hear(mels, frames)
        soft = module.encoder.soft_tokens(states, valid)
        total, metrics = coca_loss(module.heads, soft, soft[:, -1], batch)
        spelled = spelling_loss(states @ module.spell[...], valid[..., 0], batch["phones"])
        alike = likeness_loss(soft[:, -1], batch["labels"])
        total = total + SPELLING_WEIGHT * spelled + LIKENESS_WEIGHT * alike
        return total, {**metrics, "loss_spelling": spelled, "loss_likeness": alike}

    return make_task(make_captioned_audio(recipe, num_ids), loss, recipe.audio_stage)
