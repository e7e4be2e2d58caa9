"""Keys and values of what was read, in a fixed number of slots. Axis letters: see `geminid.model`; R slots.

The position q stands in slot q mod R. So a local layer needs as many slots as its window has positions (a ring buffer),
a global layer as many as there will ever be, and the same sums hold for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from geminid.config import DecoderConfig
from geminid.model.decoder import layer_windows


def held(num_slots: int, lengths: Array) -> Array:
    """Which position each slot holds after `lengths` int [B] were read: int [B R], negative where it holds none."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(num_slots)) % num_slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Rotated keys, and values, of one layer: [B R K Dh]."""

    keys: Array
    values: Array

    @property
    def num_slots(self) -> int:
        return self.keys.shape[1]

    def append(self, keys: Array, values: Array, lengths: Array) -> LayerCache:
        """Puts one more position of every row, keys and values [B 1 K Dh], after its `lengths` int [B]."""
        rows = jnp.arange(len(lengths))
        slots = lengths % self.num_slots
        return LayerCache(
            self.keys.at[rows, slots].set(keys[:, 0], unique_indices=True),
            self.values.at[rows, slots].set(values[:, 0], unique_indices=True),
        )

    def extend(self, keys: Array, values: Array, lengths: Array, counts: Array) -> LayerCache:
        """Puts the first `counts` int [B] of keys and values [B T K Dh] after the `lengths` int [B] already read."""
        come = held(self.num_slots, lengths + counts) - lengths[:, None]  # which of the new ones stands in each slot
        is_new = (come >= 0)[..., None, None]
        come = jnp.maximum(come, 0)[..., None, None]
        return LayerCache(
            jnp.where(is_new, jnp.take_along_axis(keys, come, axis=1), self.keys),
            jnp.where(is_new, jnp.take_along_axis(values, come, axis=1), self.values),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Session:
    """What B rows have read: a cache of every layer, how many ids, int [B], and the last one's hidden state [B D]."""

    layers: tuple[LayerCache, ...]
    lengths: Array
    hidden: Array

    @classmethod
    def empty(cls, config: DecoderConfig, rows: int, max_length: int) -> Session:
        """Room for `max_length` positions of each row."""
        layers = []
        for window in layer_windows(config, max_length):
            shape = (rows, min(window, max_length), config.num_kv_heads, config.head_dim)
            layers.append(LayerCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)))
        return cls(tuple(layers), jnp.zeros(rows, jnp.int32), jnp.zeros((rows, config.width), config.dtype))
