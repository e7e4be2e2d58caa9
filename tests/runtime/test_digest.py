"""Digests: every bit counts, and where it stands; blocks are digested alike wherever they are."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geminid.runtime.digest import LANES, SMALL, block_digests, state_digest
from geminid.runtime.faults import flipped

RNG = np.random.default_rng(0)
LEAVES = [
    RNG.standard_normal((3, LANES + 5)).astype(np.float32),
    RNG.standard_normal(SMALL + 3).astype(np.float32),
    np.arange(7, dtype=np.int64),
    np.zeros((), np.int32),
]
NAMES = ("a", "b", "c", "d")
WHOLE = state_digest(NAMES, LEAVES)


@given(leaf=st.integers(0, 3), data=st.data())
def test_one_bit_anywhere_changes_the_digest(leaf, data):
    byte = data.draw(st.integers(0, LEAVES[leaf].nbytes - 1))
    leaves = list(LEAVES)
    leaves[leaf] = flipped(leaves[leaf], byte, data.draw(st.integers(0, 7)))
    assert state_digest(NAMES, leaves) != WHOLE


@given(data=st.data())
def test_two_words_that_change_places_change_the_digest(data):
    i, j = data.draw(st.tuples(st.integers(0, SMALL), st.integers(0, SMALL)).filter(lambda pair: pair[0] != pair[1]))
    swapped = LEAVES[1].copy()
    swapped[[i, j]] = swapped[[j, i]]
    assert state_digest(NAMES, [LEAVES[0], swapped, *LEAVES[2:]]) != WHOLE


def test_names_shapes_and_types_count_and_where_arrays_live_does_not():
    assert state_digest(("a", "b", "c", "e"), LEAVES) != WHOLE
    assert state_digest(NAMES, [LEAVES[0].reshape(-1, 3), *LEAVES[1:]]) != WHOLE
    assert state_digest(NAMES, [*LEAVES[:3], np.zeros((), np.uint32)]) != WHOLE
    moved = [leaf if leaf.dtype == np.int64 else jnp.asarray(leaf) for leaf in LEAVES]
    assert state_digest(NAMES, moved) == WHOLE


def test_a_block_has_the_same_digest_alone_and_among_others():
    blocks = RNG.standard_normal((6, 4, 128)).astype(np.float32)
    whole = block_digests(blocks)
    assert len({row.tobytes() for row in whole}) == 6
    for begin, end in ((0, 6), (2, 3), (3, 6)):
        np.testing.assert_array_equal(block_digests(blocks[begin:end]), whole[begin:end])
