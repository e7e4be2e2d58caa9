"""Gemma 3 with pictures: soft tokens of SigLIP in the decoder's stream. Axis letters: see `geminid.model`.

P pictures of a batch, n soft tokens of each.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.model.decoder import Decoder
from geminid.model.layers import RMSNorm, dense
from geminid.model.multimodal import flat, packed_mask
from geminid.model.siglip import SiglipEncoder
from geminid.model.towers import PictureTextConfig


class PictureProjection(nnx.Module):
    """States of patches -> soft tokens: means of squares of patches, normed, projected to the decoder's width."""

    def __init__(self, config: PictureTextConfig, *, rngs: nnx.Rngs):
        self.soft_grid = config.soft_grid
        self.norm = RMSNorm(config.vision.width, config.vision.norm_epsilon)
        self.out = dense(config.vision.width, config.decoder.width, rngs)

    def __call__(self, x: Array) -> Array:
        """x [P grid^2 D] -> [P n D of the decoder], row by row."""
        side = round(x.shape[1] ** 0.5)
        squares = x.reshape(x.shape[0], self.soft_grid, side // self.soft_grid, self.soft_grid, -1, x.shape[2])
        return self.norm(squares.mean((2, 4)).reshape(x.shape[0], -1, x.shape[2])) @ self.out[...]


class PictureText(nnx.Module):
    """Decoder, picture encoder, and the projection between them."""

    def __init__(self, config: PictureTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.decoder = Decoder(config.decoder, config.num_ids, rngs=rngs)
        self.vision = SiglipEncoder(config.vision, rngs=rngs)
        self.projection = PictureProjection(config, rngs=rngs)

    def soft_tokens(self, pictures: Array) -> Array:
        """pictures float32 [P H W 3] in [-1, 1] -> [P n D]."""
        return self.projection(self.vision(pictures))

    def place(self, ids: Array, sources: Array, pictures: Array | None) -> Array:
        """What the decoder reads [B T D]: ids and sources (`picture_sources`) int [B T].

        Soft tokens enter as they are: only embedded ids are scaled by sqrt(width).
        """
        x = self.decoder.embed(jnp.where(sources > 0, 0, ids))  # the picture's id may lie outside the embedding
        if pictures is None:
            return x
        soft = jnp.take(flat(self.soft_tokens(pictures)), jnp.maximum(sources - 1, 0), axis=0)
        return jnp.where(sources[..., None] > 0, soft.astype(x.dtype), x)

    def __call__(
        self, ids: Array, sources: Array, segments: Array, positions: Array, pictures: Array | None = None
    ) -> Array:
        """Hidden states [B T D] of packed rows; ids, sources, segments (0: padding), positions int [B T]."""
        x = self.place(ids, sources, pictures)
        return self.decoder(x, positions, picture_mask(segments, sources > 0))[0]


def picture_sources(ids: np.ndarray, num_pictures: int, config: PictureTextConfig) -> np.ndarray:
    """int32 [B T]: 0 where a position is its id, k > 0 where it is soft token k of all, counted row by row.

    ids int [B T]. ValueError when the places do not fit the pictures.
    """
    reserved = ids == config.picture_id
    places, needed = int(reserved.sum()), num_pictures * config.num_soft_tokens
    if places != needed:
        raise ValueError(
            f"{places} places for soft tokens (id {config.picture_id}), but {num_pictures} pictures of "
            f"{config.num_soft_tokens} need {needed}; write that id {config.num_soft_tokens} times for each picture"
        )
    outside = ids[~reserved & ((ids < 0) | (ids >= config.num_ids))]
    if outside.size:
        raise ValueError(f"id {outside[0]} is not one of the model's {config.num_ids}; use this model's tokenizer")
    return np.where(reserved, np.cumsum(reserved).reshape(ids.shape), 0).astype(np.int32)


def picture_mask(segments: Array, is_picture: Array) -> Array:
    """bool [B T S]: what came earlier in the segment, and all of the run of soft tokens one stands in.

    segments int [B T] (0: padding), is_picture bool [B T]. Two pictures with nothing between them are one run, as in
    the original; Gemma 3 always writes markers around each. A local layer cuts off what is too far *behind* only: a
    soft token sees all of the picture that follows, but of what precedes no more than the window holds.
    """
    before = jnp.pad(is_picture[:, :-1], ((0, 0), (1, 0)))
    run = jnp.where(is_picture, jnp.cumsum(is_picture & ~before, 1), 0)
    together = (run[:, :, None] == run[:, None, :]) & (run[:, :, None] > 0)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return packed_mask(segments) | (together & same)
