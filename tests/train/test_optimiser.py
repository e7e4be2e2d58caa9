"""AdamW step by step in numpy; what stays where it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from geminid.config import DecoderConfig, OptimiserConfig
from geminid.model.decoder import Decoder
from geminid.train.optimiser import make_optimiser
from geminid.train.params import params_of

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = OptimiserConfig(
    learning_rate=0.1,
    final_fraction=0.1,
    warmup_steps=3,
    beta1=0.8,
    beta2=0.9,
    weight_decay=0.2,
    clip_norm=1.5,
)
STEPS = 9
RATES = {"matrix": 1.0, "vector": 1.0, "slow": 0.25, "frozen": 0.0}
PARAMS = {
    name: np.random.default_rng(i).standard_normal((3,) if name == "vector" else (2, 3)).astype(np.float32)
    for i, name in enumerate(RATES)
}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    size = 0.1 if step % 2 else 2.0  # below the clipping norm, and above
    return {name: size * rng.standard_normal(p.shape).astype(np.float32) for name, p in PARAMS.items()}


def rate_at(step: int) -> float:
    if step < CONFIG.warmup_steps:
        return CONFIG.learning_rate * step / CONFIG.warmup_steps
    part = (step - CONFIG.warmup_steps) / (STEPS - CONFIG.warmup_steps)
    low = CONFIG.final_fraction
    return CONFIG.learning_rate * (low + (1 - low) * 0.5 * (1 + np.cos(np.pi * part)))


def adamw_by_hand() -> dict[str, np.ndarray]:
    """Loshchilov & Hutter 2019, algorithm 2, with clipping before and the factor of each parameter after."""
    params = {name: p.astype(np.float64) for name, p in PARAMS.items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(STEPS):
        grads = gradients(step)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for name, p in params.items():
            g = grads[name] * min(1.0, CONFIG.clip_norm / norm)
            first[name] = CONFIG.beta1 * first[name] + (1 - CONFIG.beta1) * g
            second[name] = CONFIG.beta2 * second[name] + (1 - CONFIG.beta2) * g**2
            mean = first[name] / (1 - CONFIG.beta1 ** (step + 1))
            square = second[name] / (1 - CONFIG.beta2 ** (step + 1))
            decay = 0.0 if name == "vector" else CONFIG.weight_decay * p
            params[name] = p - RATES[name] * rate_at(step) * (mean / (np.sqrt(square) + 1e-8) + decay)
    return params


def test_it_is_adamw_with_warm_up_and_cosine():
    optimiser = make_optimiser(CONFIG, STEPS, lambda path: RATES[path.strip("[']")])

    @jax.jit
    def step(params, state, grads):
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimiser.init(PARAMS)
    for i in range(STEPS):
        params, state = step(params, state, gradients(i))
    expected = adamw_by_hand()
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5)
    assert np.abs(expected["matrix"] - PARAMS["matrix"]).max() > 0.1
    np.testing.assert_array_equal(params["frozen"], PARAMS["frozen"])  # to the bit, weight decay included


def moved(params: dict, steps: int = 3) -> dict[str, bool]:
    """Which parameters change without any gradient: those that weight decay touches."""
    optimiser = make_optimiser(CONFIG, STEPS, lambda _: 1.0)

    @jax.jit
    def step(params, state):
        updates, state = optimiser.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    after, state = params, optimiser.init(params)
    for _ in range(steps):
        after, state = step(after, state)
    pairs = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: bool((a != b).any()), params, after))
    return {jax.tree_util.keystr(path): bool(changed) for path, changed in pairs}


def test_weight_decay_touches_matrices_and_no_vectors():
    assert moved({"w": jnp.ones((2, 2)), "b": jnp.ones(3), "s": jnp.float32(1.0)}) == {
        "['b']": False,
        "['s']": False,
        "['w']": True,
    }


def test_weight_decay_leaves_the_norms_of_stacked_layers_alone():
    config = DecoderConfig(num_layers=2, width=4, num_heads=2, head_dim=2, mlp_width=4, post_norm=True)
    made = nnx.eval_shape(lambda: Decoder(config, 5, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda p: jnp.ones(p.shape), params_of(made))
    touched = moved(params)
    assert len(touched) > 10
    assert {
        path for path, changed in touched.items() if changed != ("norm" not in path and "post" not in path)
    } == set()
