"""The joint stage: next-id prediction over packed, interleaved documents of every modality."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geminid.config import Recipe
from geminid.model.codec import spread_mean
from geminid.model.multimodal import Model, Sensed, flat
from geminid.model.vision import to_float
from geminid.train import augment
from geminid.train.pretrain import Task, make_task

ENCODERS = ("['vision']", "['audio']")


def make_model(recipe: Recipe, num_ids: int) -> Model:
    return Model(recipe, num_ids, rngs=nnx.Rngs(recipe.seed + 3))


def next_id_loss(
    model: Model, batch: Any, sensed: Sensed, read: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean cross-entropy of every id from what stands before it in its own document, plus z-loss.

    The target of an image code is spread over its neighbours (`geminid.model.codec.spread_mean`): nearly the right
    colour is nearly right. The metric loss_codes is of the code alone.
    batch: arrays of `batches.packing.assemble`. read int [B T]: what the model reads in place of batch["ids"].
    z-loss: PaLM (Chowdhery et al. 2022), section 5.
    """
    ids = batch["ids"] if read is None else read
    hidden = model(ids, batch["sources"], batch["places"], batch["segments"], batch["positions"], sensed)
    at = batch["answers"]  # the first position of all is never one: it stands for none
    logits = model.decoder.logits(flat(hidden)[jnp.maximum(at - 1, 0)])
    log_z = jax.nn.logsumexp(logits, -1)
    targets, weights = batch["ids"].reshape(-1)[at], batch["weights"].reshape(-1)[at]
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    total = jnp.maximum(weights.sum(), 1e-6)
    nll = log_z - chosen
    first_code = logits.shape[-1] - model.recipe.codec.num_codes
    is_code = targets >= first_code
    around = spread_mean(
        logits[:, first_code:],
        jnp.maximum(targets - first_code, 0),
        model.recipe.codec.levels,
        model.recipe.joint.code_spread,
    )
    codes = ((weights > 0) & is_code).astype(jnp.float32)
    words = ((weights > 0) & ~is_code).astype(jnp.float32)
    loss = jnp.sum(weights * (log_z - jnp.where(is_code, around, chosen))) / total
    penalty = model.recipe.decoder.z_loss * jnp.sum(weights * log_z**2) / total
    metrics = {
        "loss_text": jnp.sum(words * nll) / jnp.maximum(words.sum(), 1.0),
        "loss_codes": jnp.sum(codes * nll) / jnp.maximum(codes.sum(), 1.0),
    }
    return loss + penalty, metrics


def misread_codes(key: jax.Array, ids: jax.Array, num_codes: int, num_ids: int, most: float) -> jax.Array:
    """ids int [B T] with a share of the image codes exchanged for random ones; the share of a row is 0 to `most`.

    A drawing is written after its own mistakes. A model that reads true codes alone recognises a training picture by
    its first codes, copies it, and forgets the prompt.
    """
    a, b, c = jax.random.split(key, 3)
    share = jax.random.uniform(a, (len(ids), 1), maxval=most)
    others = jax.random.randint(b, ids.shape, num_ids - num_codes, num_ids)
    return jnp.where((ids >= num_ids - num_codes) & (jax.random.uniform(c, ids.shape) < share), others, ids)


def augmented(key: jax.Array, batch: Any) -> Sensed:
    """What a batch of `batches.packing.assemble` sees and hears, changed as in training."""
    a, b, _, d = jax.random.split(key, 4)
    pictures = augment.pictures(a, to_float(batch["pictures"]))
    natural = (1.0, 1.0)  # speed: the held encoder has heard other speeds
    mels, frames = augment.mels(b, batch["mels"], batch["frames"], natural)
    as_it_is = jax.random.bernoulli(d, 0.5, frames.shape)  # changed ones alone: 3 points of hearing fewer
    return Sensed(pictures, jnp.where(as_it_is[:, None, None], batch["mels"], mels), frames)


def misread(key: jax.Array, batch: Any, recipe: Recipe, num_ids: int) -> jax.Array:
    """int [B T]: the ids that the model reads in training, some image codes exchanged."""
    key = jax.random.split(key, 4)[2]  # the others are for `augmented`
    return misread_codes(key, batch["ids"], recipe.codec.num_codes, num_ids, recipe.joint.misread)


def joint_task(recipe: Recipe, model: Model) -> Task:
    """Trains the decoder; pretrained encoders learn at `encoder_rate` of its rate, and not at all at 0."""
    rate, num_ids = recipe.joint.encoder_rate, model.decoder.embedding.shape[0]

    def loss(model: Model, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return next_id_loss(model, batch, augmented(key, batch), misread(key, batch, recipe, num_ids))

    return make_task(model, loss, recipe.joint.stage, lambda path: rate if path.startswith(ENCODERS) else 1.0)
