"""Ours: the step of the joint stage, `geminid.train.joint.joint_task`, on rows of text alone.

All that the stage does is done: places, packing masks, the loss at `answers`, the target's spread over image codes
(there are four, and none is asked for). Encoders are there and idle, for there is nothing to see or hear.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.contest import EPSILON, THETA, Shape, Update
from benchmarks.peers.jax_products import products_of
from benchmarks.peers.worker import Contender, Spec
from geminid import recipes
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
from geminid.train import joint
from geminid.train.memory import keep_memory

STEPS = 1_000_000_000  # so that the learning rate stays where it begins
# a document a row; what lies between the products is computed again
ON_GPU = {"attention": "blockwise", "attention_documents": 1, "remat": "dots"}


def recipe_of(shape: Shape, update: Update, dtype: str, device: str = "cpu") -> Recipe:
    decoder = DecoderConfig(
        num_layers=shape.num_layers, width=shape.width, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim, mlp_width=shape.mlp_width, norm_epsilon=EPSILON, rope_theta=THETA, activation="silu",
        scale_embedding=False, z_loss=0.0, dtype=dtype, **(ON_GPU if device == "cuda" else {}),
    )  # fmt: skip
    optimiser = OptimiserConfig(
        matrices="adamw", learning_rate=update.learning_rate, warmup_steps=0, beta1=update.beta1, beta2=update.beta2,
        weight_decay=update.weight_decay, clip_norm=update.clip_norm,
    )  # fmt: skip
    return dataclasses.replace(
        recipes.demo(),
        codec=CodecConfig(levels=(2, 2)),
        vision=VisionConfig(stem_widths=(8,), width=8, num_heads=1),
        audio=AudioConfig(conv_widths=(8,), width=8, num_heads=1),
        decoder=decoder,
        joint=JointConfig(
            stage=StageConfig(steps=STEPS, batch=shape.batch, optimiser=optimiser),
            mixture=MixtureConfig(draw=0),
            row_length=shape.length,
            answer_share=1.0,
            code_spread=0.0,
            misread_codes=0.0,
            misread_words=0.0,
        ),
    )


def batch_of(ids: np.ndarray, recipe: Recipe) -> dict[str, np.ndarray]:
    """As `geminid.batches.packing.assemble` makes it of one document a row. ids int32 [B T]."""
    rows, length = ids.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    answers = np.flatnonzero(positions)
    side, audio = recipe.data.picture_size, recipe.audio
    return {
        "ids": ids,
        "sources": np.zeros_like(ids),
        "places": np.zeros_like(ids),
        "segments": np.ones_like(ids),
        "positions": positions,
        "weights": (positions > 0).astype(np.float32),
        "answers": np.append(answers, np.zeros(rows)).astype(np.int32),
        "pictures": np.zeros((0, side, side, 3), np.uint8),
        "mels": np.zeros((0, audio.num_frames, audio.num_mels), np.float32),
        "frames": np.zeros(0, np.int32),
    }


def decoder_params(weights: dict[str, np.ndarray], shape: Shape) -> dict[str, Any]:
    """Qwen 3's names and layout -> those of `geminid.model.decoder.Decoder`: stacked, [in out], norms less one."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([weights[f"model.layers.{i}.{name}.weight"] for i in range(shape.num_layers)])

    def matrix(name: str) -> jax.Array:
        return jnp.asarray(stacked(name).swapaxes(1, 2))

    def scale(name: str) -> dict[str, jax.Array]:
        return {"scale": jnp.asarray(stacked(name) - 1)}

    attention = {name: matrix(f"self_attn.{name[0]}_proj") for name in ("q", "k", "v", "out")}
    norms = {name: scale(f"self_attn.{name}") for name in ("q_norm", "k_norm")}
    return {
        "embedding": jnp.asarray(weights["model.embed_tokens.weight"]),
        "norm": {"scale": jnp.asarray(weights["model.norm.weight"] - 1)},
        "layers": {
            "norm_attention": scale("input_layernorm"),
            "attention": {**attention, **norms},
            "norm_mlp": scale("post_attention_layernorm"),
            "mlp": {name: matrix(f"mlp.{name}_proj") for name in ("gate", "up", "down")},
        },
    }


def first_state(spec: Spec) -> tuple[Recipe, Any]:
    """The recipe, and the joint stage's task with the weights of the contest."""
    recipe = recipe_of(spec.shape, spec.update, spec.dtype, spec.device)
    task = joint.joint_task(recipe, joint.make_model(recipe, spec.shape.num_ids))
    params = task.state["params"]
    params["decoder"] = jax.tree.map(
        lambda old, new: new.reshape(old.shape), params["decoder"], decoder_params(spec.weights, spec.shape)
    )
    return recipe, task


def make(spec: Spec, ids: np.ndarray) -> Contender:
    keep_memory()  # as `geminid train` does
    recipe, task = first_state(spec)
    key, state = jax.random.key(0), task.state

    def step(ids: np.ndarray) -> jax.Array:
        nonlocal state
        state, metrics = task.step(state, batch_of(ids, recipe), key)
        return metrics["loss"]

    def wait() -> None:
        jax.block_until_ready(state)

    setting = ", ".join(f"{k}={v}" for k, v in ON_GPU.items()) if spec.device == "cuda" else "as it comes"
    return Contender(step, wait, products_of(spec.dtype), setting, f"jax {jax.__version__}")
