"""Attention in blocks against the definition in numpy: documents, windows, caps, shared heads, lengths of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geminid.model.blockwise import NO_KEY, Where, blockwise, reach, sees
from geminid.model.causal import causal

pytestmark = pytest.mark.usefixtures("quick_compiles")


def rows_of(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of packed rows: documents of random lengths, the last of a row perhaps padding."""
    segments, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        ends = np.sort(rng.integers(1, length + 1, 3))
        for number, (a, b) in enumerate(zip((0, *ends), ends, strict=False), 1):
            segments[row, a:b], positions[row, a:b] = number, np.arange(b - a)
    return segments, positions


def seen(segments: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
    """bool [B T T] by a loop over all pairs."""
    rows, length = segments.shape
    mask = np.zeros((rows, length, length), bool)
    for b, t, s in np.ndindex(mask.shape):
        own = segments[b, t] == segments[b, s] > 0
        mask[b, t, s] = t == s or (own and s <= t and positions[b, t] - positions[b, s] < window)
    return mask


def attention(q, k, v, mask, cap):
    """The definition, head by head."""
    heads = []
    for h in range(q.shape[2]):
        own = h * k.shape[2] // q.shape[2]
        scores = jnp.einsum("btd,bsd->bts", q[:, :, h], k[:, :, own])
        if cap is not None:
            scores = cap * jnp.tanh(scores / cap)
        heads.append(jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) @ v[:, :, own])
    return jnp.stack(heads, 2)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1 << 20),
    length=st.integers(1, 33),
    block=st.sampled_from([1, 5, 8, 40]),
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    window=st.sampled_from([1, 3, 1 << 30]),
    cap=st.sampled_from([None, 2.0]),
)
@example(seed=0, length=33, block=8, heads=(4, 1), window=6, cap=2.0)
@example(seed=1, length=32, block=8, heads=(4, 2), window=1 << 30, cap=None)
def test_blocks_give_what_the_definition_gives_and_its_gradients(seed, length, block, heads, window, cap):
    rng = np.random.default_rng(seed)
    segments, positions = rows_of(rng, 2, length)
    q, k, v, weights = (rng.standard_normal((2, length, n, 4)).astype(np.float32) for n in (*heads, heads[1], heads[0]))
    mask = seen(segments, positions, window)
    where = Where.of(jnp.asarray(segments), jnp.asarray(positions))

    def in_blocks(q, k, v):
        return (blockwise(q, k, v, where, where, jnp.asarray(window), cap, block) * weights).sum()

    def with_scores(q, k, v):
        return (causal(q, k, v, where, where, jnp.asarray(window), cap, block) * weights).sum()

    def defined(q, k, v):
        return (attention(q, k, v, mask, cap) * weights).sum()

    *got, wanted = (
        jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)) for f in (in_blocks, with_scores, defined)
    )
    for one in got:
        for a, b in zip(one, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_no_visible_pair_is_left_out_and_few_blocks_are_computed():
    rng = np.random.default_rng(3)
    for window in (3, 20, 1 << 30):
        segments, positions = rows_of(rng, 1, 64)
        where = Where.of(jnp.asarray(segments), jnp.asarray(positions))
        begin, end = map(np.asarray, reach(where, where, jnp.asarray(window), 8))
        mask = seen(segments, positions, window)[0].reshape(8, 8, 8, 8).any((1, 3))
        np.testing.assert_array_equal(sees(where, where, window), seen(segments, positions, window))
        for i, j in np.argwhere(mask):
            assert begin[i] <= j < end[i]
    one = Where.of(jnp.ones((1, 64), int), jnp.arange(64)[None])
    begin, end = reach(one, one, jnp.asarray(9), 8)
    np.testing.assert_array_equal(end - begin, np.minimum(np.arange(8) + 1, 2))
    nobody = Where(jnp.full((1, 8), NO_KEY), jnp.zeros((1, 8), int), jnp.full((1, 8), NO_KEY))
    begin, end = reach(nobody, one, jnp.asarray(9), 8)
    np.testing.assert_array_equal(end - begin, 0)


def arrays_in(jaxpr) -> list[int]:
    """Sizes of all arrays that a program makes, those inside its loops and calls too."""
    sizes = []
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(out.aval.shape)) for out in equation.outvars if hasattr(out.aval, "shape")]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                sizes += arrays_in(inner)
    return sizes


def test_no_array_grows_with_the_square_of_the_length():
    """Twice the positions: no array, forward or backward, has more than twice the values."""

    def largest(length: int) -> int:
        where = Where.of(jnp.ones((1, length), int), jnp.arange(length)[None])

        def f(q, k, v):
            return blockwise(q, k, v, where, where, jnp.asarray(1 << 30), None, 64).sum()

        q, kv = jnp.zeros((1, length, 2, 8)), jnp.zeros((1, length, 1, 8))
        return max(arrays_in(jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(q, kv, kv).jaxpr))

    assert largest(8192) == 2 * largest(4096)
