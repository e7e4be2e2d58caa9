"""Trains and measures one rung of a ladder: the joint stage, with another decoder and as many steps as asked.

The encoders are held, so what they make of a batch is made once and serves every rung. Step i of every rung reads the
same documents, changed in the same way: rungs differ by their decoder and their steps alone. In this room only this
module imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from geminid.batches.packing import Batch, PackedBatches
from geminid.config import DecoderConfig, Recipe
from geminid.model.multimodal import Model, Sensed
from geminid.model.sizes import count
from geminid.model.vision import to_float
from geminid.plan.ladder import LOSSES, Measured, Rung
from geminid.train import joint
from geminid.train.pretrain import make_task
from geminid.train.rundir import RunDir
from geminid.train.stage import Workshop, initial_model, packed_batches

FIRST_UNSEEN = 1 << 40  # documents from this number on are for measuring: no training comes so far
MEASURED_BATCHES = 16
AVERAGING = 8  # eta of polynomial-decay averaging (Shamir & Zhang 2013, arXiv 1212.1824, section 4)


class Made(nnx.Module):
    """Stands where an encoder stands and gives back the soft tokens that it made before."""

    def __call__(self, soft: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        return soft


def rung_model(recipe: Recipe, num_ids: int) -> Model:
    """A fresh model that takes soft tokens where others take pictures, float [P n W], and log-mels, float [C m W]."""
    model = joint.make_model(recipe, num_ids)
    model.vision, model.audio = Made(), Made()  # pyrefly: ignore[bad-assignment]
    return model


def rung_recipe(recipe: Recipe, rung: Rung) -> Recipe:
    """The recipe with the rung's decoder, and a rate that stays what it is after the warm-up."""
    optimiser = dataclasses.replace(recipe.joint.stage.optimiser, learning_rate=rung.learning_rate, final_fraction=1.0)
    stage = dataclasses.replace(recipe.joint.stage, steps=rung.steps[-1], optimiser=optimiser)
    return dataclasses.replace(recipe, decoder=rung.decoder, joint=dataclasses.replace(recipe.joint, stage=stage))


def plain(recipe: Recipe) -> Recipe:
    """The same model under cross-entropy alone: no target spread over neighbouring codes, no z-loss."""
    return dataclasses.replace(
        recipe,
        decoder=dataclasses.replace(recipe.decoder, z_loss=0.0),
        joint=dataclasses.replace(recipe.joint, code_spread=0.0),
    )


def trainer_of(run: RunDir, dataset_path: Path) -> Trainer:
    """Trains on what the run's joint stage reads, with its encoders."""
    shop = Workshop(run.recipe(), run, dataset_path, lambda done: None)
    return Trainer(shop.recipe, shop.space.size, packed_batches(shop), initial_model(shop))


class Trainer:
    """Trains rungs on packed documents. Soft tokens are made when a rung first asks for them, and kept in memory.

    encoders: a model of which the encoders alone are used.
    """

    def __init__(self, recipe: Recipe, num_ids: int, packed: PackedBatches, encoders: Model):
        self.recipe, self.num_ids, self.packed = recipe, num_ids, packed
        self.batches = iter(packed)
        self.read: list[Batch] = []
        self.key = jax.random.key(recipe.seed)

        def soft(sensed: Sensed) -> tuple[jax.Array, jax.Array]:
            return encoders.vision(sensed.pictures), encoders.audio(sensed.mels, sensed.frames)

        self.soft_as_trained = jax.jit(lambda batch, key: soft(joint.augmented(key, batch)))
        self.soft_as_it_is = jax.jit(
            lambda batch: soft(Sensed(to_float(batch["pictures"]), batch["mels"], batch["frames"]))
        )

    def step_key(self, i: int) -> jax.Array:
        return jax.random.fold_in(self.key, i)

    def batch(self, i: int) -> Batch:
        """Batch of step i, soft tokens in place of pictures and log-mels."""
        while len(self.read) <= i:
            batch = next(self.batches)
            self.read.append(with_soft(batch, *self.soft_as_trained(batch, self.step_key(len(self.read)))))
        return self.read[i]

    @cached_property
    def unseen(self) -> list[Batch]:
        """What every rung is measured on."""
        packed = self.packed
        later = PackedBatches(
            lambda i: packed.stream_of(FIRST_UNSEEN + i), packed.shape, packed.space, packed.lookahead
        )
        batches = iter(later)
        return [
            with_soft(batch, *self.soft_as_it_is(batch))
            for batch, _ in zip(batches, range(MEASURED_BATCHES), strict=False)
        ]

    def num_params(self, rung: Rung) -> int:
        model = nnx.eval_shape(lambda: rung_model(rung_recipe(self.recipe, rung), self.num_ids))
        return count(nnx.state(model, nnx.Param))

    def __call__(self, rung: Rung, report: Callable[[int], None]) -> list[Measured]:
        """Trains a rung, and measures the mean of its weights so far after each of its numbers of steps.

        report is told the number of steps done.
        """
        recipe = rung_recipe(self.recipe, rung)
        model = rung_model(recipe, self.num_ids)

        def loss(model: Model, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return joint.next_id_loss(model, batch, sensed(batch), joint.ids_read(key, batch, recipe, self.num_ids))

        task = make_task(model, loss, recipe.joint.stage)
        state = task.state
        mean = jax.tree.map(jnp.copy, state["params"])  # a step takes its state's memory
        measured = []
        for i in range(rung.steps[-1]):
            state, _ = task.step(state, self.batch(i), self.step_key(i))
            mean = averaged(mean, state["params"], i + 1)
            report(i + 1)
            if i + 1 in rung.steps:
                losses = self.losses(rung.decoder, mean)
                if not math.isfinite(losses["loss"]):
                    raise ValueError(
                        f"rung {rung.name}: loss is {losses['loss']}; its learning rate, {rung.learning_rate:g}, is too"
                        " high: start from a run with a lower joint.stage.optimiser.learning_rate"
                    )
                positions = (i + 1) * self.packed.shape.rows * self.packed.shape.length
                measured.append(Measured(f"{rung.name}x{i + 1}", count(mean), positions, **losses))
        return measured

    def losses(self, decoder: DecoderConfig, params: Any) -> dict[str, float]:
        """Nats an answered id on the unseen documents: weighted as in training, of text alone, of image codes alone."""
        recipe = plain(dataclasses.replace(self.recipe, decoder=decoder))
        means = [jax.device_get(measure(recipe, self.num_ids, params, batch)) for batch in self.unseen]
        amounts = [self.amounts(batch) for batch in self.unseen]
        return {
            name: sum(float(mean[name]) * amount[name] for mean, amount in zip(means, amounts, strict=True))
            / max(sum(amount[name] for amount in amounts), 1e-6)
            for name in LOSSES
        }

    def amounts(self, batch: Batch) -> dict[str, float]:
        """How much a batch's mean of each kind is a mean over."""
        weights, is_code = batch["weights"], batch["ids"] >= self.num_ids - self.recipe.codec.num_codes
        words, codes = ((weights > 0) & kind for kind in (~is_code, is_code))
        return {"loss": float(weights.sum()), "loss_text": float(words.sum()), "loss_codes": float(codes.sum())}


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(recipe: Recipe, num_ids: int, params: Any, batch: Any) -> dict[str, jax.Array]:
    graph = nnx.graphdef(rung_model(recipe, num_ids))
    value, metrics = joint.next_id_loss(nnx.merge(graph, nnx.State(params)), batch, sensed(batch))
    return {"loss": value, **metrics}


@functools.partial(jax.jit, donate_argnums=0)
def averaged(mean: Any, params: Any, step: int) -> Any:
    """The mean of the parameters of `step` steps, 1 or more, from that of one step less: late ones count most.

    Step i weighs as i^8 nearly, whatever their number, so the means of all numbers of steps are of one shape.
    """
    share = (AVERAGING + 1) / (AVERAGING + step)
    return jax.tree.map(lambda a, b: a + share * (b - a), mean, params)


def with_soft(batch: Batch, pictures: jax.Array, mels: jax.Array) -> Batch:
    return {**batch, "pictures": np.asarray(pictures), "mels": np.asarray(mels)}


def sensed(batch: Any) -> Sensed:
    return Sensed(batch["pictures"], batch["mels"], batch["frames"])
