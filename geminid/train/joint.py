"""The joint stage: next-id prediction over packed, interleaved documents of every modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geminid.config import Recipe
from geminid.model.codec import spread_mean
from geminid.model.multimodal import Model, Sensed, flat
from geminid.model.vision import to_float
from geminid.parallel.sharding import constrain, constrain_answers, spread_rows
from geminid.tokens.ids import special_names
from geminid.train import augment
from geminid.train.pretrain import Loss, Rate, Task, make_task
from geminid.train.shards import ShardedTask, make_sharded_task

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
    hidden = constrain(constrain(hidden, None, "positions"), None, None, "split")
    at = batch["answers"]  # the first position of all is never one: it stands for none
    before = constrain(flat(hidden)[jnp.maximum(at - 1, 0)], None, "split")
    targets, weights = batch["ids"].reshape(-1)[at], batch["weights"].reshape(-1)[at]
    num_ids = model.decoder.embedding.shape[0]
    first_code = num_ids - model.recipe.codec.num_codes
    code_rows = spread_rows(model.decoder.embedding[...], first_code)

    def scored(before: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits = model.decoder.logits(constrain_answers(before, num_ids))
        log_z = jax.nn.logsumexp(logits, -1)
        chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        codes, levels = jnp.maximum(targets - first_code, 0), model.recipe.codec.levels
        code_logits = logits[:, first_code:] if code_rows is None else model.decoder.logits_of(before, code_rows)
        around = spread_mean(code_logits, codes, levels, model.recipe.joint.code_spread)
        return log_z, chosen, around

    log_z, chosen, around = in_chunks(scored, model.recipe.joint.logit_chunk, before, targets)
    total = jnp.maximum(weights.sum(), 1e-6)
    nll = log_z - chosen
    is_code = targets >= first_code
    codes = ((weights > 0) & is_code).astype(jnp.float32)
    words = ((weights > 0) & ~is_code).astype(jnp.float32)
    loss = jnp.sum(weights * (log_z - jnp.where(is_code, around, chosen))) / total
    penalty = model.recipe.decoder.z_loss * jnp.sum(weights * log_z**2) / total
    metrics = {
        "loss_text": jnp.sum(words * nll) / jnp.maximum(words.sum(), 1.0),
        "loss_codes": jnp.sum(codes * nll) / jnp.maximum(codes.sum(), 1.0),
    }
    return loss + penalty, metrics


def in_chunks(f: Callable[..., Any], size: int | None, *arrays: jax.Array) -> Any:
    """f(*arrays), rows of all arrays [N ...] alike, `size` rows at a time: what f makes on the way is not kept."""
    if size is None:
        return f(*arrays)
    count = len(arrays[0])
    padded = [jnp.pad(x, ((0, -count % size), *[(0, 0)] * (x.ndim - 1))) for x in arrays]
    chunks = [x.reshape(-1, size, *x.shape[1:]) for x in padded]
    given = jax.lax.map(lambda chunk: jax.checkpoint(f)(*chunk), chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], given)


def misread(key: jax.Array, ids: jax.Array, where: jax.Array, begin: int, end: int, most: float) -> jax.Array:
    """ids int [B T] with some of those in [begin, end) and `where` exchanged for others in that range.

    where: bool [B T]. The share of a row is 0 to `most`. An answer is written after its own mistakes, and a model that
    reads true ones alone leans on them: it tells a drawing by its first codes and a word by its first piece, and
    forgets what it was asked about.
    """
    a, b, c = jax.random.split(key, 3)
    share = jax.random.uniform(a, (len(ids), 1), maxval=most)
    others = jax.random.randint(b, ids.shape, begin, end)
    chosen = where & (ids >= begin) & (ids < end) & (jax.random.uniform(c, ids.shape) < share)
    return jnp.where(chosen, others, ids)


def augmented(key: jax.Array, batch: Any) -> Sensed:
    """What a batch of `batches.packing.assemble` lets the encoders see and hear in training."""
    pictures = augment.pictures(jax.random.split(key, 3)[0], to_float(batch["pictures"]))
    # sounds as they are: of a held encoder that has heard them changed, changed ones taught less (docs/log.md)
    return Sensed(pictures, batch["mels"], batch["frames"])


def ids_read(key: jax.Array, batch: Any, recipe: Recipe, num_ids: int) -> jax.Array:
    """int [B T]: what the decoder reads in training in place of batch["ids"], answers misread. key: as `augmented`."""
    _, b, c = jax.random.split(key, 3)
    first_piece, first_code = len(special_names(recipe)), num_ids - recipe.codec.num_codes
    answers = batch["weights"] > 0
    read = misread(b, batch["ids"], answers, first_code, num_ids, recipe.joint.misread_codes)
    return misread(c, read, answers, first_piece, first_code, recipe.joint.misread_words)


def joint_loss(recipe: Recipe, model: Model) -> Loss:
    """The loss of the joint stage, with its random changes to what is seen and read."""
    num_ids = model.decoder.embedding.shape[0]

    def loss(model: Model, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return next_id_loss(model, batch, augmented(key, batch), ids_read(key, batch, recipe, num_ids))

    return loss


def joint_rate(recipe: Recipe) -> Rate:
    """Pretrained encoders learn at `encoder_rate` of the decoder's rate, and not at all at 0."""
    return lambda path: recipe.joint.encoder_rate if path.startswith(ENCODERS) else 1.0


def joint_task(recipe: Recipe, model: Model) -> Task:
    """Trains the decoder, and the encoders as `joint_rate` says."""
    return make_task(model, joint_loss(recipe, model), recipe.joint.stage, joint_rate(recipe))


def sharded_joint_task(recipe: Recipe, model: Model) -> ShardedTask:
    """The same for a batch in `joint.shards` logical shards."""
    loss, rate = joint_loss(recipe, model), joint_rate(recipe)
    return make_sharded_task(model, loss, recipe.joint.stage, rate, recipe.decoder.dtype)
