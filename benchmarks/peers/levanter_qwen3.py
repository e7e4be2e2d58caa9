"""Levanter's (marin-levanter) Qwen 3: its model, its loss, its AdamW and its state's `take_step`, in one jit.

Axis letters: see `contest`.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Any

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import jmp
import numpy as np
from haliax.state_dict import from_torch_compatible_state_dict
from levanter.layers.attention import AttentionBackend, AttentionMask
from levanter.layers.rotary import DefaultRotaryEmbeddingsConfig
from levanter.models.lm_model import LmExample
from levanter.models.loss import next_token_loss
from levanter.models.qwen import Qwen3Config
from levanter.optim import AdamConfig
from levanter.trainer_state import TrainerState

from benchmarks.peers.contest import EPSILON, THETA, Shape, Update
from benchmarks.peers.jax_products import products_of
from benchmarks.peers.worker import Contender, Spec, fastest

STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a user may choose. Nothing is computed twice: at these sizes memory is no concern."""

    scan: bool
    attention: AttentionBackend
    fused_loss: bool


SETTINGS = {
    "layers unrolled": Setting(False, AttentionBackend.VANILLA, True),
    "layers unrolled, all logits": Setting(False, AttentionBackend.VANILLA, False),
    "layers scanned": Setting(True, AttentionBackend.VANILLA, True),
    "layers unrolled, flash attention": Setting(False, AttentionBackend.JAX_FLASH, True),
}


def config_of(shape: Shape, setting: Setting) -> Qwen3Config:
    return Qwen3Config(
        max_seq_len=shape.length,
        hidden_dim=shape.width,
        intermediate_dim=shape.mlp_width,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        head_dim=shape.head_dim,
        num_kv_heads=shape.num_kv_heads,
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=True,
        use_bias=False,
        rope=DefaultRotaryEmbeddingsConfig(theta=THETA),
        gradient_checkpointing=False,
        scan_layers=setting.scan,
        attn_backend=setting.attention,
    )


def optimiser_of(update: Update) -> Any:
    return AdamConfig(
        learning_rate=update.learning_rate,
        weight_decay=update.weight_decay,
        weight_decay_modules=r".*_proj.*weight",
        default_weight_decay_mask=False,
        beta1=update.beta1,
        beta2=update.beta2,
        epsilon=update.epsilon,
        max_grad_norm=update.clip_norm,
        warmup=0,
        lr_schedule="constant",
    ).build(STEPS)


def model_of(spec: Spec, setting: Setting) -> Any:
    """Levanter reads weights into scanned layers alone: those that are not are taken from them."""
    vocab, key = hax.Axis("vocab", spec.shape.num_ids), jax.random.key(0)
    scanned = config_of(spec.shape, dataclasses.replace(setting, scan=True)).build(vocab, key=key)
    scanned = from_torch_compatible_state_dict(scanned, dict(spec.weights))
    if setting.scan:
        return scanned
    model = config_of(spec.shape, setting).build(vocab, key=key)
    blocks = list(scanned.transformer.layers.unstacked())
    where = lambda m: (m.embeddings, m.transformer.norm, m.transformer.layers.blocks)  # noqa: E731
    return eqx.tree_at(where, model, (scanned.embeddings, scanned.transformer.norm, blocks))


def first_state(spec: Spec, setting: Setting) -> TrainerState:
    model = model_of(spec, setting)
    policy = "f32" if spec.dtype == "float32" else "p=f32,c=bfloat16"
    return TrainerState.init(
        optimiser_of(spec.update), jax.tree.map(jnp.asarray, model), key=jax.random.key(0), mp=jmp.get_policy(policy)
    )


def made(spec: Spec, name: str) -> Contender:
    setting, shape = SETTINGS[name], spec.shape
    state = first_state(spec, setting)
    batch, pos = hax.Axis("batch", shape.batch), hax.Axis("position", shape.length)
    weight = hax.broadcast_to(LmExample.causal_loss_mask(pos).astype(jnp.float32), (batch, pos))

    def loss_of(model: Any, ids: hax.NamedArray) -> jax.Array:
        model = state.mp.cast_to_compute(model)
        if setting.fused_loss:
            return model.compute_next_token_loss(LmExample(ids, weight, AttentionMask.causal())).scalar()
        logits = model(ids, AttentionMask.causal()).astype(jnp.float32)
        return next_token_loss(pos, model.Vocab, logits, ids, weight).scalar()

    @hax.named_jit(donate_args=(True, False))
    def take(state: TrainerState, ids: hax.NamedArray) -> tuple[TrainerState, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(loss_of)(state.model, ids)
        return state.take_step(grads, loss=loss, key=state.training_key)[0], loss

    def step(ids: np.ndarray) -> jax.Array:
        nonlocal state
        state, loss = take(state, hax.named(ids, (batch, pos)))
        return loss

    def wait() -> None:
        jax.block_until_ready(jax.tree.leaves(eqx.filter(state, eqx.is_array)))

    return Contender(step, wait, products_of(spec.dtype), name, f"marin-levanter {version('marin-levanter')}")


def make(spec: Spec, ids: np.ndarray) -> Contender:
    return made(spec, fastest({name: lambda name=name: made(spec, name) for name in SETTINGS}, ids))
