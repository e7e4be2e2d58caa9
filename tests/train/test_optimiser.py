"""Muon and AdamW step by step in numpy; which parameters are matrices; what stays where it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from geminid.config import AudioConfig, DecoderConfig, OptimiserConfig
from geminid.model.audio import AudioEncoder
from geminid.model.coca import CaptionHeads
from geminid.model.decoder import Decoder
from geminid.train.optimiser import make_optimiser, matrices
from geminid.train.params import named, params_of

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = OptimiserConfig(
    learning_rate=0.1,
    final_fraction=0.1,
    warmup_steps=3,
    momentum=0.7,
    beta1=0.8,
    beta2=0.9,
    weight_decay=0.2,
    clip_norm=1.5,
)
STEPS = 9
SHAPES = {
    "matrix": (4, 3), "wide": (2, 5), "slow": (3, 3), "frozen": (2, 3),
    "vector": (3,), "scalar": (), "embedding": (4, 3), "frozen_vector": (3,),
}  # fmt: skip
BY_MUON = ("matrix", "wide", "slow", "frozen")
RATES = {"slow": 0.25, "frozen": 0.0, "frozen_vector": 0.0}
PARAMS = {
    name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    for i, (name, shape) in enumerate(SHAPES.items())
}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    size = 0.1 if step % 2 else 2.0  # below the clipping norm, and above
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def train(params: Any, grads: list, config: OptimiserConfig = CONFIG, rate_of=lambda _: 1.0) -> Any:
    """The parameters after one step for each of the gradients."""
    optimiser = make_optimiser(config, STEPS, rate_of)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for part in grads:
        params, state = step(params, state, part)
    return params


# --- by hand ---


def rate_at(step: int) -> float:
    if step < CONFIG.warmup_steps:
        return CONFIG.learning_rate * step / CONFIG.warmup_steps
    part = (step - CONFIG.warmup_steps) / (STEPS - CONFIG.warmup_steps)
    low = CONFIG.final_fraction
    return CONFIG.learning_rate * (low + (1 - low) * 0.5 * (1 + np.cos(np.pi * part)))


def nesterov(mean: np.ndarray, g: np.ndarray, beta: float, step: int) -> np.ndarray:
    """The mean as it will be one step ahead, without bias (Dozat 2016, algorithm 2 with a constant momentum)."""
    return beta * mean / (1 - beta ** (step + 2)) + (1 - beta) * g / (1 - beta ** (step + 1))


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024, `zeropower_via_newtonschulz5`."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def by_hand() -> dict[str, np.ndarray]:
    """Muon with the scale of Liu et al. 2025, eq. 4, and NAdam; clipping before, the factor of a parameter after."""
    params = {name: p.astype(np.float64) for name, p in PARAMS.items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(STEPS):
        grads = gradients(step)
        learning = [g.astype(np.float64) for name, g in grads.items() if RATES.get(name) != 0]
        norm = np.sqrt(sum((g**2).sum() for g in learning))
        for name, p in params.items():
            g = grads[name] * min(1.0, CONFIG.clip_norm / norm)
            beta = CONFIG.momentum if name in BY_MUON else CONFIG.beta1
            first[name] = beta * first[name] + (1 - beta) * g
            change = nesterov(first[name], g, beta, step)
            if name in BY_MUON:
                change = 0.2 * np.sqrt(max(p.shape)) * newton_schulz(change) + CONFIG.weight_decay * p
            else:
                second[name] = CONFIG.beta2 * second[name] + (1 - CONFIG.beta2) * g**2
                change = change / (np.sqrt(second[name] / (1 - CONFIG.beta2 ** (step + 1))) + 1e-8)
            params[name] = p - RATES.get(name, 1.0) * rate_at(step) * change
    return params


def test_it_is_muon_and_adamw_with_warm_up_and_cosine():
    grads = [gradients(step) for step in range(STEPS)]
    params = train(PARAMS, grads, rate_of=lambda path: RATES.get(path.strip("[']"), 1.0))
    expected = by_hand()
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)
        if RATES.get(name) == 0:
            np.testing.assert_array_equal(value, PARAMS[name])  # to the bit, weight decay included
        else:
            assert np.abs(expected[name] - PARAMS[name]).max() > 0.02


def test_asked_for_adamw_it_is_that_for_all_and_matrices_decay():
    """Loshchilov & Hutter 2019, algorithm 2, without Muon and without Nesterov's momentum."""
    config = dataclasses.replace(CONFIG, matrices="adamw")
    expected = {name: p.astype(np.float64) for name, p in PARAMS.items()}
    first, second = ({name: np.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for step in range(STEPS):
        grads = gradients(step)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for name, p in expected.items():
            g = grads[name] * min(1.0, config.clip_norm / norm)
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            mean, square = (
                first[name] / (1 - config.beta1 ** (step + 1)),
                second[name] / (1 - config.beta2 ** (step + 1)),
            )
            decay = config.weight_decay * p if name in BY_MUON else 0.0
            expected[name] = p - rate_at(step) * (mean / (np.sqrt(square) + 1e-8) + decay)
    for name, value in train(PARAMS, [gradients(step) for step in range(STEPS)], config).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)


# --- what Muon is for ---

PLAIN = dataclasses.replace(CONFIG, weight_decay=0.0, clip_norm=1e9, warmup_steps=1)  # step 0 has rate 0, step 1 all


@pytest.mark.parametrize("shape", [(8, 6), (20, 20), (3, 40)])
def test_a_step_goes_along_the_nearest_orthogonal_matrix(shape):
    """In the gradient's singular basis it is near 1 on the diagonal and nothing elsewhere."""
    gradient = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    after = train({"w": np.zeros(shape, np.float32)}, [{"w": gradient}] * 2, PLAIN)["w"]
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    scale = PLAIN.learning_rate * 0.2 * np.sqrt(max(shape))
    turned = -(u.T @ np.asarray(after) @ vt.T) / scale
    np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0, atol=1e-3)
    assert 0.3 < np.diag(turned).min() <= np.diag(turned).max() < 1.3
    np.testing.assert_allclose(np.sqrt(np.mean(after**2)) / PLAIN.learning_rate, 0.2, rtol=0.3)  # as large as Adam's


def step_of(tree: Any) -> Any:
    """How far parameters move when their gradients are `tree`."""
    return train(jax.tree.map(np.zeros_like, tree), [tree] * 2, PLAIN)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_stacked_layers_are_orthogonalised_one_by_one():
    stacked, kernel = random(3, 4, 5), random(3, 3, 2, 4)
    sound, odd = random(5, 2, 3), random(2, 6)
    together = step_of({"layers": {"q": stacked, "norm": {"scale": odd}}, "kernel": kernel, "sound": sound})
    alone = step_of({f"w{i}": layer for i, layer in enumerate(stacked)})
    for i in range(3):
        np.testing.assert_allclose(together["layers"]["q"][i], alone[f"w{i}"], atol=1e-5)
    flat = step_of({"kernel": kernel.reshape(18, 4), "sound": sound.reshape(10, 3), "odd": odd.reshape(-1)})
    np.testing.assert_allclose(together["kernel"].reshape(18, 4), flat["kernel"], atol=1e-5)
    np.testing.assert_allclose(together["sound"].reshape(10, 3), flat["sound"], atol=1e-5)
    np.testing.assert_allclose(together["layers"]["norm"]["scale"].reshape(-1), flat["odd"], atol=1e-6)


def test_stacked_blocks_of_an_encoder_are_too_and_a_list_of_them_is_no_stack():
    stacked = random(3, 4, 5)
    together = step_of({"blocks": {"q": stacked, "scale": random(3, 4)}})["blocks"]["q"]
    listed = step_of({"blocks": {i: {"q": layer} for i, layer in enumerate(stacked)}})["blocks"]
    for i in range(3):
        np.testing.assert_allclose(together[i], listed[i]["q"], atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (3, 40)])
def test_as_a_loop_muon_takes_the_same_steps(shape):
    gradients = [{"layers": {"q": random(2, *shape)}}, {"layers": {"q": -random(2, *shape)[::-1]}}] * 2
    start = {"layers": {"q": np.zeros((2, *shape), np.float32)}}
    unrolled, looped = (train(start, gradients, dataclasses.replace(PLAIN, scan_muon=scan)) for scan in (False, True))
    np.testing.assert_allclose(unrolled["layers"]["q"], looped["layers"]["q"], atol=1e-5)


def test_muon_in_half_precision_goes_nearly_the_same_way():
    gradient = {"w": random(40, 24)}
    start = jax.tree.map(np.zeros_like, gradient)
    wide, half = (
        train(start, [gradient] * 2, dataclasses.replace(PLAIN, muon_dtype=dtype))["w"].reshape(-1)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == np.float32
    assert 0.99 < wide @ half / np.sqrt((wide @ wide) * (half @ half)) < 1 - 1e-7


def test_adam_moves_every_number_of_a_table_by_itself():
    """By the same amount each, when every step has the same gradient; Muon does not."""
    tables = {name: random(4, 3) for name in ("embedding", "words", "caption", "depthwise")}
    moved = step_of({"heads": tables, "w": random(4, 3)})
    for name, table in moved["heads"].items():
        np.testing.assert_array_equal(np.sign(table), -np.sign(tables[name]))
        np.testing.assert_allclose(np.abs(table), np.abs(table).max(), rtol=1e-3)
    assert np.abs(moved["w"]).min() < 0.5 * np.abs(moved["w"]).max()


# --- which parameters are matrices ---

DECODER = DecoderConfig(num_layers=2, width=4, num_heads=2, head_dim=2, mlp_width=4, post_norm=True)
AUDIO = AudioConfig(num_mels=4, conv_widths=(4,), width=4, num_layers=1, num_heads=2, conv_kernel=3)


def shapes_of(make) -> Any:
    return params_of(nnx.eval_shape(make))


@pytest.mark.parametrize(
    ("make", "tables"),
    [
        (lambda: AudioEncoder(AUDIO, rngs=nnx.Rngs(0)), {"blocks/0/depthwise"}),
        (lambda: CaptionHeads(5, 4, 4, 2, rngs=nnx.Rngs(0)), {"words", "embedding", "caption"}),
        (lambda: Decoder(DECODER, 5, rngs=nnx.Rngs(0)), {"embedding"}),
    ],
)
def test_tables_and_norms_and_biases_are_no_matrices(make, tables):
    params = shapes_of(make)
    axes = jax.tree.map(lambda a: a is None, matrices(params), is_leaf=lambda a: a is None or isinstance(a, tuple))
    vectors = {name for name in named(params) if name.endswith(("/scale", "/bias"))}
    assert vectors and len(named(axes)) > len(vectors | tables)
    assert {name for name, by_adam in named(axes).items() if by_adam} == vectors | tables


def drift(params: dict) -> dict:
    """The parameters after three steps without any gradient: weight decay alone."""
    return train(params, [jax.tree.map(jnp.zeros_like, params)] * 3)


def test_weight_decay_shrinks_matrices_and_no_vectors():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3), "s": jnp.float32(1.0), "embedding": jnp.ones((2, 2))}
    after = drift(params)
    for name in ("b", "s", "embedding"):
        np.testing.assert_array_equal(after[name], 1)
    kept = np.prod([1 - CONFIG.weight_decay * rate_at(step) for step in range(3)])
    np.testing.assert_allclose(after["w"], kept, rtol=1e-6)


def test_weight_decay_leaves_embedding_and_norms_of_stacked_layers_alone():
    params = jax.tree.map(lambda p: jnp.ones(p.shape), shapes_of(lambda: Decoder(DECODER, 5, rngs=nnx.Rngs(0))))
    found = {name: bool((x != 1).any()) for name, x in named(drift(params)).items()}
    assert len(found) > 10
    assert {name for name, changed in found.items() if not changed} == {
        name for name in found if "norm" in name or "post" in name or name == "embedding"
    }
