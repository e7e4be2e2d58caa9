"""One stage of a run: what it reads, what it trains, what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geminid.batches.memory import Memory
from geminid.batches.mixture import Mixture
from geminid.batches.packing import PackedBatches, Shape
from geminid.batches.pairs import CaptionedClips, CaptionedPictures, PictureBatches, iterate
from geminid.batches.sharding import ShardedBatches, ShardedIterator
from geminid.config import Recipe, StageConfig
from geminid.corpus.store import open_dataset
from geminid.model.multimodal import Model
from geminid.model.vision import to_float
from geminid.tokens.ids import IdSpace
from geminid.tokens.stream import Stream, Streamer
from geminid.train import joint, pretrain
from geminid.train.loop import Loop, cursor_of, write_array
from geminid.train.params import load_params, params_of, save_params
from geminid.train.rundir import RunDir, write_json
from geminid.train.shards import serial_step

Report = Callable[[int], None]


@dataclass(frozen=True)
class Workshop:
    """What every stage needs, read when first asked for."""

    recipe: Recipe
    run: RunDir
    dataset_path: Path
    report: Report

    @cached_property
    def memory(self) -> Memory:
        return Memory(self.recipe, open_dataset(self.dataset_path))

    @cached_property
    def space(self) -> IdSpace:
        return IdSpace.load(self.recipe, self.run.tokenizer)

    def loop(self, name: str, config: StageConfig, task: pretrain.Task, batches: Any) -> None:
        """Trains `task` and writes its parameters, which marks the stage as finished."""
        loop = Loop(name, self.run.stage(name), config, self.recipe.seed, self.run.curve(name), self.report)
        state = loop.run(task.step, task.state, batches)
        write_json(self.run.cursor(name), cursor_of(batches))
        save_params(self.run.params(name), state["params"])


def codec(shop: Workshop) -> None:
    config = shop.recipe.codec_stage
    batches = iterate(PictureBatches(shop.memory, config.batch, config.steps))
    shop.loop("codec", config, pretrain.codec_task(shop.recipe), batches)


def vision(shop: Workshop) -> None:
    config = shop.recipe.vision_stage
    batches = iterate(CaptionedPictures(shop.memory, shop.space, config.batch, config.steps))
    shop.loop("vision", config, pretrain.vision_task(shop.recipe, shop.space.size), batches)


def audio(shop: Workshop) -> None:
    config = shop.recipe.audio_stage
    batches = iterate(CaptionedClips(shop.memory, shop.space, config.batch, config.steps))
    shop.loop("audio", config, pretrain.audio_task(shop.recipe, shop.space.size), batches)


def encode_pictures(shop: Workshop, batch: int = 256) -> np.ndarray:
    """Image codes of every picture of the data set, int32 [pictures h w], kept in the run."""
    if not shop.run.codes.is_file():
        codec = load_params(shop.run.params("codec"), pretrain.make_codec(shop.recipe))
        encode = jax.jit(lambda pixels: codec.encode(to_float(pixels)))
        pixels = shop.memory.pixels
        padded = np.concatenate([pixels, np.zeros((-len(pixels) % batch, *pixels.shape[1:]), np.uint8)])
        parts = [np.asarray(encode(jnp.asarray(padded[k : k + batch]))) for k in range(0, len(padded), batch)]
        write_array(shop.run.codes, np.concatenate(parts)[: len(pixels)])
    return np.load(shop.run.codes)


def initial_model(shop: Workshop) -> Model:
    """Fresh decoder, pretrained encoders."""
    model = joint.make_model(shop.recipe, shop.space.size)
    model.vision = load_params(shop.run.params("vision"), model.vision, "encoder/")
    model.audio = load_params(shop.run.params("audio"), model.audio, "encoder/")
    return model


def streams(shop: Workshop) -> Callable[[int], Stream]:
    """The stream of each document of the joint stage, a pure function of its number."""
    recipe = shop.recipe
    mixture = Mixture(shop.memory, encode_pictures(shop))
    streamer = Streamer(shop.space, recipe.vision, recipe.audio, recipe.joint.code_weight)
    return lambda i: streamer(mixture(i))


def packed_batches(shop: Workshop) -> PackedBatches:
    return PackedBatches(streams(shop), Shape.of(shop.recipe), shop.space, shop.recipe.joint.lookahead)


def sharded_batches(shop: Workshop) -> ShardedBatches:
    joint = shop.recipe.joint
    return ShardedBatches(streams(shop), Shape.of(shop.recipe), shop.space, joint.lookahead, joint.shards)


def joint_stage(shop: Workshop) -> None:
    recipe, model = shop.recipe, initial_model(shop)
    if recipe.joint.shards == 1:
        shop.loop("joint", recipe.joint.stage, joint.joint_task(recipe, model), iter(packed_batches(shop)))
        return
    task = joint.sharded_joint_task(recipe, model)
    serial = pretrain.Task(task.first(params_of(model)), serial_step(task))
    shop.loop("joint", recipe.joint.stage, serial, ShardedIterator(sharded_batches(shop)))


STAGES: dict[str, Callable[[Workshop], None]] = {
    "codec": codec,
    "vision": vision,
    "audio": audio,
    "joint": joint_stage,
}
