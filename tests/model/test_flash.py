"""cuDNN's attention: which documents it is told of, and that its program can be made; on a GPU, what it computes."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from geminid.model.flash import documents_of, flash, suits
from geminid.parallel.sharding import make_mesh
from geminid.train.fused import FusedStep
from tests.model.test_blockwise import attention, rows_of, seen
from tests.parallel import small

on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU from Hopper on")


LENGTH = 12


@settings(max_examples=60)
@given(
    ends=st.lists(st.sets(st.integers(1, LENGTH - 1)), min_size=2, max_size=2),
    most=st.sampled_from([1, 3, LENGTH]),
)
def test_lengths_and_offsets_are_those_of_the_documents(ends, most):
    rows = [np.diff([0, *sorted(of_row), LENGTH]).tolist() for of_row in ends]
    segments = np.stack([np.repeat(np.arange(len(row)) % 3 + 1, row) for row in rows])
    lengths, offsets, enough = jax.jit(documents_of, static_argnums=1)(segments, most)
    for b, row in enumerate(rows):
        assert enough[b] == (len(row) <= most)
        if enough[b]:
            absent = [-1] * (most - len(row))
            assert lengths[b].tolist() == [*row, *absent]
            assert offsets[b].tolist() == [*np.cumsum([0, *row[:-1]]), *absent, -1]


def test_its_program_calls_the_kernel_forward_and_backward(monkeypatch):
    """What is below JAX's public function may change: this fails first, on any machine."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 92000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)

    def f(q, k, v):
        return flash(q, k, v, jnp.ones((2, 256), int), 64, 4).astype(jnp.float32).sum()

    q, kv = jnp.zeros((2, 256, 4, 64), jnp.bfloat16), jnp.zeros((2, 256, 1, 64), jnp.bfloat16)
    program = jax.jit(jax.grad(f, (0, 1, 2))).trace(q, kv, kv).lower(lowering_platforms=("cuda",)).as_text()
    called = set(re.findall(r"__cudnn\$\w+", program))
    assert called == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}


def test_it_is_asked_for_what_it_can_do_alone():
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    if jax.default_backend() != "gpu":
        assert not suits(q, q, None)
    assert not suits(q, q, 2.0)
    assert not suits(q.astype(jnp.float32), q.astype(jnp.float32), None)
    assert not suits(q[:, :4], q, None)


@on_gpu
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (4, 2)])
@pytest.mark.parametrize("window", [None, 70])
def test_kernel_gives_what_the_definition_gives_and_its_gradients(heads, window):
    rng = np.random.default_rng(0)
    rows, length = 3, 384
    segments, positions = rows_of(rng, rows, length)
    draw = partial(rng.standard_normal, dtype=np.float32)
    q, k, v, weights = (draw((rows, length, n, 64)) for n in (*heads, heads[1], heads[0]))
    q = q / 8
    weights = np.where(segments[..., None, None] > 0, weights, 0.0)
    mask = seen(segments, positions, window or 1 << 30)

    def by_kernel(q, k, v):
        q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
        return (flash(q, k, v, jnp.asarray(segments), window, 8).astype(jnp.float32) * weights).sum()

    def defined(q, k, v):
        q, k, v = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v))
        with jax.default_matmul_precision("highest"):
            return (attention(q, k, v, mask, None) * weights).sum()

    got, wanted = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (by_kernel, defined))
    for a, b in zip(got, wanted, strict=True):
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b)


@on_gpu
@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_multimodal_step_errs_no_more_than_with_scores(scan_layers):
    """Windows, one key-value head, pictures and sounds, all shards in one program over a mesh."""

    def gradient_of(**decoder) -> np.ndarray:
        recipe = small.recipe_of(head_dim=16, scan_layers=scan_layers, **decoder)
        batches, space = small.batches_of(recipe)
        task, params = small.task_of(recipe, space.size, changed=False)
        step = FusedStep(task, make_mesh({}))
        gradient, _ = step.gradients(params, step.stack(batches), jax.random.key(0))
        return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in gradient])

    with jax.default_matmul_precision("highest"):
        true = gradient_of(attention="dense")
    dense, kernel = (gradient_of(attention=name, dtype="bfloat16") for name in ("dense", "blockwise"))
    assert np.linalg.norm(kernel - true) <= 1.5 * np.linalg.norm(dense - true)


@on_gpu
def test_other_documents_change_nothing_and_too_many_give_nan():
    rng = np.random.default_rng(1)
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], 64, 1))
    q, k, v = (jnp.asarray(rng.standard_normal((1, 256, 2, 64)), jnp.bfloat16) for _ in range(3))
    own = (segments == 2)[..., None, None]
    f = jax.jit(lambda q, k, v: flash(q, k, v, segments, None, 3))
    before, after = f(q, k, v), f(*(jnp.where(own, x, 7 * x + 1) for x in (q, k, v)))
    np.testing.assert_array_equal(np.asarray(before)[own[..., 0, 0]], np.asarray(after)[own[..., 0, 0]])
    assert not np.isnan(np.asarray(before, np.float32)).any()
    assert np.isnan(np.asarray(flash(q, k, v, segments, None, 2), np.float32)).all()
