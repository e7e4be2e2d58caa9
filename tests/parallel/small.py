"""A small multimodal model, and batches for it: packed texts, pictures, drawings and clips, in logical shards."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from geminid import recipes
from geminid.batches.packing import Batch, Plan, Shape, assemble
from geminid.config import (
    AudioConfig,
    CodecConfig,
    DecoderConfig,
    JointConfig,
    MixtureConfig,
    OptimiserConfig,
    Recipe,
    StageConfig,
    VisionConfig,
)
from geminid.document import Document, make_image, make_text, see_audio, see_image, see_text, tag
from geminid.model.multimodal import Sensed
from geminid.tokens.ids import IdSpace, special_names
from geminid.tokens.stream import Streamer
from geminid.train import joint
from geminid.train.params import params_of
from geminid.train.shards import ShardedTask, make_sharded_task
from tests.helpers import Letters

LENGTH, SHARDS = 64, 8


def recipe_of(**decoder: Any) -> Recipe:
    """Every axis of the decoder can be split in eight; one key-value head."""
    base = {
        "num_layers": 2, "width": 32, "num_heads": 8, "num_kv_heads": 1, "head_dim": 4, "mlp_width": 48,
        "window": 9, "local_per_global": 1, "smear": True, "attention": "blockwise", "attention_block": 8,
        "scan_layers": True, "remat": "attended", "z_loss": 0.02,
    }  # fmt: skip
    stage = StageConfig(steps=9, batch=SHARDS * 2, optimiser=OptimiserConfig(learning_rate=0.1, warmup_steps=0))
    return dataclasses.replace(
        recipes.demo(),
        codec=CodecConfig(levels=(11,)),  # 160 ids: they can be split too
        vision=VisionConfig(stem_widths=(8,), width=16, num_layers=0, num_heads=2),
        audio=AudioConfig(
            max_s=0.16, num_mels=8, conv_widths=(8,), conv_blocks=0, width=16, num_layers=0, num_heads=2,
            conv_kernel=3, reduction=2,
        ),
        decoder=DecoderConfig(**(base | decoder)),
        joint=JointConfig(
            stage=stage, mixture=MixtureConfig(draw=0), shards=SHARDS, row_length=LENGTH, max_pictures=SHARDS * 4,
            max_clips=SHARDS * 2, answer_share=0.4, encoder_rate=0.5, logit_chunk=16,
        ),
    )  # fmt: skip


def batches_of(recipe: Recipe, seed: int = 0) -> tuple[list[Batch], IdSpace]:
    """A batch of random documents of every kind, in `SHARDS` logical shards of two rows."""
    space = IdSpace(special_names(recipe), Letters(), recipe.codec.num_codes)  # type: ignore[arg-type]
    streamer = Streamer(space, recipe.vision, recipe.audio, code_weight=0.4)
    whole = Shape.of(recipe)
    shape = dataclasses.replace(whole, rows=2, pictures=4, clips=2, picture_size=16, answers=50)
    rng = np.random.default_rng(seed)

    def words(count: int) -> str:
        return "".join(chr(ord("a") + k) for k in rng.integers(0, 26, count))

    def picture() -> Any:
        return see_image(rng.integers(0, 256, (16, 16, 3), np.uint8))

    def sound() -> Any:
        return see_audio(rng.standard_normal((int(rng.integers(3, 17)), 8)).astype(np.float32) - 3)

    def documents() -> list[Document]:
        parts = [
            (picture(), tag("lang:en"), make_text(words(5))),
            (tag("draw"), see_text(words(4)), make_image(rng.integers(0, 9, (2, 3)))),
            (sound(), make_text(words(3))),
            (
                picture(),
                see_text(words(9)),
                sound(),
                picture(),
                see_text(words(2)),
                tag("lang:fr"),
                make_text(words(6)),
            ),
            (see_text(words(14)), make_text(words(4))),
        ]
        return [Document(parts[k], "test") for k in rng.permutation(len(parts))]

    def shard() -> Batch:
        plan = Plan(shape)
        for document in documents():
            assert plan.place(streamer(document))
        return assemble(plan.rows, shape, space)

    return [shard() for _ in range(SHARDS)], space


def task_of(recipe: Recipe, num_ids: int, changed: bool) -> tuple[ShardedTask, Any]:
    """The joint task and parameters of which none is 0. changed: with the random changes to what is seen and read."""
    model = nnx.eval_shape(lambda: joint.make_model(recipe, num_ids))
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda p: 0.2 * rng.standard_normal(p.shape).astype(np.float32), params_of(model))
    if changed:
        return joint.sharded_joint_task(recipe, model), params

    def loss(model: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return joint.next_id_loss(model, batch, Sensed(batch["pictures"], batch["mels"], batch["frames"]))

    return make_sharded_task(model, loss, recipe.joint.stage), params
