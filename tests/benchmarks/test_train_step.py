"""The contest's own parts: equal weights give equal losses, and the count of work is what the compiler counts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks.peers.contest import SHAPES, Shape, Update, batches, first_weights, weight_shapes
from benchmarks.peers.geminid_step import batch_of, first_state
from benchmarks.peers.worker import Spec
from geminid.train.params import named

pytestmark = pytest.mark.usefixtures("quick_compiles")
TINY = SHAPES["tiny"]


def spec_of(shape: Shape) -> Spec:
    return Spec(shape, Update(), "cpu", "float32", first_weights(shape))


def loss_by_hand(shape: Shape, weights: dict[str, np.ndarray], ids: np.ndarray) -> float:
    """Qwen 3 in numpy, float64, a row and a position at a time."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:  # [T heads Dh]: pairs (i, i + Dh/2) as complex numbers
        half = shape.head_dim // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
        return np.concatenate([z.real, z.imag], -1)

    total = 0.0
    for row in ids:
        x = weights["model.embed_tokens.weight"].astype(np.float64)[row]
        for i in range(shape.num_layers):
            at = f"model.layers.{i}"

            def times(x: np.ndarray, name: str, at: str = at) -> np.ndarray:
                return x @ weights[f"{at}.{name}_proj.weight"].T

            normed = norm(x, f"{at}.input_layernorm")
            q, k, v = (times(normed, f"self_attn.{p}").reshape(len(row), -1, shape.head_dim) for p in "qkv")
            q, k = turned(norm(q, f"{at}.self_attn.q_norm")), turned(norm(k, f"{at}.self_attn.k_norm"))
            mixed = np.zeros_like(q)
            for t in range(len(row)):
                for head in range(shape.num_heads):
                    shared = head * shape.num_kv_heads // shape.num_heads
                    scores = np.exp(k[: t + 1, shared] @ q[t, head] / np.sqrt(shape.head_dim))
                    mixed[t, head] = scores @ v[: t + 1, shared] / scores.sum()
            x = x + times(mixed.reshape(len(row), -1), "self_attn.o")
            normed = norm(x, f"{at}.post_attention_layernorm")
            gate = times(normed, "mlp.gate")
            x = x + times(gate / (1 + np.exp(-gate)) * times(normed, "mlp.up"), "mlp.down")
        logits = norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T
        total += sum(np.log(np.exp(z).sum()) - z[target] for z, target in zip(logits, row[1:], strict=False))
    return total / (len(ids) * (shape.length - 1))


def test_our_step_begins_with_the_loss_of_the_contest_s_weights():
    recipe, task = first_state(spec := spec_of(TINY))
    ids = batches(TINY)[0]
    _, metrics = task.step(task.state, batch_of(ids, recipe), jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(loss_by_hand(TINY, spec.weights, ids), abs=1e-5)


@pytest.mark.parametrize("maker", ["torch_gpt", "transformers_qwen3"])
def test_a_peer_has_the_same_losses_after_the_same_updates(maker):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="the contest's peers need torch and transformers")
    from benchmarks.peers import torch_gpt, transformers_qwen3

    spec, ids = spec_of(TINY), batches(TINY)
    recipe, task = first_state(spec)
    if maker == "torch_gpt":
        model = torch_gpt.GPT(TINY)
        model.load_state_dict(torch_gpt.converted(spec.weights, TINY))
        peer = torch_gpt.contender(spec, model, lambda net, x: net(x, torch_gpt.targets_of(x)), "", "")
    else:
        model = transformers_qwen3.model_of(TINY, spec.weights)
        peer = torch_gpt.contender(spec, model, lambda net, x: net(input_ids=x, labels=x).loss, "", "")
    state = task.state
    for batch in ids[:4]:
        state, metrics = task.step(state, batch_of(batch, recipe), jax.random.key(0))
        assert float(peer.step(batch)) == pytest.approx(float(metrics["loss"]), abs=1e-4)


def test_parameters_are_those_of_our_decoder():
    for shape in (TINY, Shape(1, 16, 4, 1, 8, 20, 40, 2, 16)):
        _, task = first_state(spec_of(shape))
        assert sum(leaf.size for leaf in jax.tree.leaves(task.state["params"]["decoder"])) == shape.num_params
        assert sum(map(np.prod, weight_shapes(shape).values())) == shape.num_params
        assert len(named(task.state["params"]["decoder"])) == 2 + 11


def test_small_and_20m_are_what_they_are_called():
    assert SHAPES["small"].num_params == pytest.approx(5.3e6, rel=0.01)
    assert SHAPES["20m"].num_params == pytest.approx(20.5e6, rel=0.01)


def test_the_formula_counts_what_the_compiler_counts():
    """Of products alone: a shape in which they are nearly everything."""
    shape = Shape(2, 128, 2, 2, 64, 512, 1024, 2, 128)
    recipe, task = first_state(spec_of(shape))
    lowered = task.step.lower(task.state, batch_of(batches(shape)[0], recipe), jax.random.key(0))
    counted = lowered.compile().cost_analysis()["flops"] / shape.tokens
    assert counted == pytest.approx(shape.flops_per_token, rel=0.15)
