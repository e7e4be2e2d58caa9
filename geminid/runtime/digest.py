"""Digests: 64-bit, order-sensitive fingerprints of arrays, computed where the arrays are.

Words of 32 bits are laid out in rows; every lane mixes its column from top to bottom (xor, odd multiply, shift: each a
bijection), so no single changed word can go unnoticed, and then all lanes are folded into 64 bits. Two changed words
of one lane hide each other with probability 2^-32, others with 2^-64. It runs at the speed of memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LANES = 4096
UNROLLED = 4  # rows: their mixing is one pass over the lanes
SMALL = 1 << 16  # words: smaller arrays are digested as one, larger ones each by a program of its own
_GOLDEN, _ODD, _ODDER = (np.uint32(x) for x in (0x9E3779B2, 0x85EBCA6B, 0xC2B2AE35))


def _words(x: Array) -> Array:
    """Any array -> uint32 [n]."""
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    return bits.reshape(-1).astype(jnp.uint32)


def _mix(state: Array, words: Array) -> Array:
    state = (state ^ words) * _ODD
    return state ^ (state >> 15)


def _fold(state: Array) -> Array:
    """uint32 [... lanes] -> uint32 [... 2]."""
    lane = jnp.arange(state.shape[-1], dtype=jnp.uint32) * _GOLDEN + jnp.uint32(1)
    other = (state ^ (state >> 16)) * _ODDER
    first = jnp.sum(state * lane, -1, dtype=jnp.uint32)
    second = jnp.sum((other ^ (other >> 13)) * (lane ^ _ODD), -1, dtype=jnp.uint32)
    return jnp.stack([first, second], -1)


def _start(lanes: int) -> Array:
    return jnp.arange(lanes, dtype=jnp.uint32) * _GOLDEN + jnp.uint32(1)


def _leaf(x: Array) -> Array:
    words = _words(x)
    rows = words.size // LANES

    def mix(first: Array | int, number: int, state: Array) -> Array:
        for k in range(number):
            state = _mix(state, jax.lax.dynamic_slice(words, ((first + k) * LANES,), (LANES,)))
        return state

    state = _start(LANES)
    if turns := rows // UNROLLED:
        state = jax.lax.fori_loop(0, turns, lambda turn, s: mix(turn * UNROLLED, UNROLLED, s), state)
    state = mix(turns * UNROLLED, rows % UNROLLED, state)
    tail = words[rows * LANES :]
    state = state.at[: tail.size].set(_mix(state[: tail.size], tail))
    return _fold(state)


_one = jax.jit(_leaf)


@jax.jit
def _together(leaves: list[Array]) -> Array:
    return _leaf(jnp.concatenate([_words(leaf) for leaf in leaves]))


@jax.jit
def _blocks(x: Array) -> Array:
    def mix(row: Array, state: Array) -> Array:
        return _mix(state, _words(jax.lax.dynamic_index_in_dim(x, row, 1, keepdims=False)).reshape(state.shape))

    lanes = jnp.broadcast_to(_start(x.shape[2]), (x.shape[0], x.shape[2]))
    return _fold(jax.lax.fori_loop(0, x.shape[1], mix, lanes))


def block_digests(x: Any) -> np.ndarray:
    """float32 [blocks rows lanes] -> uint32 [blocks 2]: one for each block, whatever other blocks stand beside it."""
    return np.asarray(_blocks(x))


def combined(*parts: bytes | np.ndarray) -> int:
    """64 bits of small things: digests of digests."""
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(whole.digest(), "little")


def state_digest(names: Sequence[str], leaves: Sequence[Any]) -> int:
    """Of a state's arrays: names, shapes, types and every bit. Integers of 64 bits are allowed on the host."""
    what = "".join(f"{name} {leaf.dtype} {leaf.shape};" for name, leaf in zip(names, leaves, strict=True)).encode()
    words = [leaf.view(np.uint32) if leaf.dtype.itemsize == 8 else leaf for leaf in leaves]
    small = [leaf for leaf in words if leaf.size < SMALL]
    digests = [_one(leaf) for leaf in words if leaf.size >= SMALL]
    digests += [_together(small)] if small else []
    return combined(what, *(np.asarray(digest) for digest in digests))
