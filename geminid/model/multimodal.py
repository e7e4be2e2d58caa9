"""The whole model: encoders place soft tokens into the decoder's one stream. Axis letters: see `geminid.model`.

P picture slots, C clip slots of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.config import Recipe
from geminid.model.audio import AudioEncoder
from geminid.model.codec import code_embedding
from geminid.model.decoder import Cache, Decoder
from geminid.model.layers import RMSNorm, dense
from geminid.model.vision import VisionEncoder, to_float
from geminid.parallel.sharding import constrain, constrain_slots
from geminid.tokens.ids import NUM_SIZES

PLACE_SCALE = 0.5  # of an embedded id
TILE = 16  # rows that a TPU keeps together of numbers of two bytes: arrays of whole tiles are joined without moving any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sensed:
    """What a batch sees and hears.

    pictures: uint8 [P S S 3] or float in [-1, 1]; mels: float [C frames mels]; frames: int32 [C].
    """

    pictures: Array
    mels: Array
    frames: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Keys and values of what was read, and where they stand.

    cache: rotated keys and values of every layer; positions int [B S]; present bool [B S]; last [B D]: what stood
    last, before `Smear`.
    """

    cache: Cache
    positions: Array
    present: Array
    last: Array


@partial(jax.tree_util.register_dataclass, data_fields=["kinds"], meta_fields=["counts"])
@dataclass(frozen=True)
class SoftTokens:
    """What encoders made: the tokens of each picture, then those of each clip.

    kinds: of pictures, of clips, if there are any, [slots rows D]; counts: how many of a slot's rows are tokens, the
    rows after them are zeros.
    """

    kinds: tuple[Array, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, kinds: list[Array]) -> SoftTokens:
        """kinds: [slots tokens D] each."""
        filled = [jnp.pad(x, ((0, 0), (0, -x.shape[1] % TILE), (0, 0))) for x in kinds]
        return cls(tuple(filled), tuple(x.shape[1] for x in kinds))

    def at(self, sources: Array) -> Array:
        """Of each source k > 0 the k-th token, of 0 any: int [B T] -> [B T D]."""
        index, first, begin = jnp.zeros_like(sources), 1, 0
        for kind, count in zip(self.kinds, self.counts, strict=True):
            slots, rows = kind.shape[:2]
            slot, token = jnp.divmod(sources - first, count)
            index = jnp.where(slot >= 0, begin + slot * rows + token, index)
            first, begin = first + slots * count, begin + slots * rows
        table = jnp.concatenate([constrain(flat(kind), None) for kind in self.kinds])
        return jnp.take(table, index, axis=0)


class Projection(nnx.Module):
    """From an encoder's width to the decoder's, at the scale of an embedded id."""

    def __init__(self, width_in: int, width_out: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width_in)
        self.out = dense(width_in, width_out, rngs)

    def __call__(self, x: Array) -> Array:
        return self.norm(x) @ self.out[...]


class Smear(nnx.Module):
    """Adds to every position what stands before it.

    "What came after this?" then takes one layer of attention and not two (Olsson et al. 2022, arXiv 2209.11895, smear
    the keys of every layer; one smear of what enters the first is enough here).
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width)
        self.out = dense(width, width, rngs, 0.5)

    def __call__(self, x: Array, before: Array) -> Array:
        """x [B T D]; before [B T D]: what stands before each position, zeros where nothing does."""
        return x + self.norm(before) @ self.out[...].astype(x.dtype)


class Model(nnx.Module):
    """Decoder with a picture and an audio encoder."""

    def __init__(self, recipe: Recipe, num_ids: int, *, rngs: nnx.Rngs):
        self.recipe = recipe
        width = recipe.decoder.width
        self.decoder = Decoder(recipe.decoder, num_ids, rngs=rngs)
        embedding, codes = self.decoder.embedding, code_embedding(recipe.codec.levels, width, rngs.params())
        embedding[...] = embedding[...].at[num_ids - len(codes) :].set(codes)
        self.vision = VisionEncoder(recipe.vision, rngs=rngs)
        self.audio = AudioEncoder(recipe.audio, rngs=rngs)
        self.vision_to_decoder = Projection(recipe.vision.width, width, rngs=rngs)
        self.audio_to_decoder = Projection(recipe.audio.width, width, rngs=rngs)
        init = jax.nn.initializers.normal(PLACE_SCALE)
        self.rows = nnx.Param(init(rngs.params(), (NUM_SIZES, width), jnp.float32))
        self.columns = nnx.Param(init(rngs.params(), (NUM_SIZES, width), jnp.float32))
        if recipe.decoder.smear:
            self.smear = Smear(width, rngs=rngs)

    def soft_tokens(self, sensed: Sensed) -> SoftTokens:
        """n tokens of each picture, m of each clip slot, in the compute dtype."""
        kinds = []
        if sensed.pictures.shape[0]:
            pictures = to_float(sensed.pictures) if sensed.pictures.dtype == jnp.uint8 else sensed.pictures
            kinds.append(self.vision_to_decoder(self.vision(constrain_slots(pictures))))
        if sensed.mels.shape[0]:
            mels, frames = constrain_slots(sensed.mels), constrain_slots(sensed.frames)
            kinds.append(self.audio_to_decoder(self.audio(mels, frames)))
        return SoftTokens.of([kind.astype(self.recipe.decoder.dtype) for kind in kinds])

    def embed(self, ids: Array, places: Array) -> Array:
        """ids, places int [B T] -> [B T D]. places: where in a written image the next id stands, 0 for nowhere.

        Rotary positions run along the stream; this tells a code its row and column.
        """
        row, column = jnp.divmod(jnp.maximum(places - 1, 0), NUM_SIZES)
        place = jnp.take(self.rows[...], row, axis=0) + jnp.take(self.columns[...], column, axis=0)
        x = self.decoder.embed(ids)
        return x + jnp.where(places[..., None] > 0, place, 0.0).astype(x.dtype)

    def place(self, ids: Array, sources: Array, places: Array, soft: SoftTokens) -> Array:
        """int [B T] each -> [B T D]. sources: 0 the id's own embedding, k > 0 the soft token k."""
        x = self.embed(ids, places)
        return jnp.where(sources[..., None] > 0, soft.at(sources), x) if soft.kinds else x

    def after(self, x: Array, before: Array) -> Array:
        """What the decoder reads: x [B T D], each position knowing the one before it, before [B T D]."""
        return self.smear(x, before) if self.recipe.decoder.smear else x

    def __call__(
        self, ids: Array, sources: Array, places: Array, segments: Array, positions: Array, sensed: Sensed
    ) -> Array:
        """Hidden states [B T D] of packed rows; ids, sources, places, segments, positions int [B T].

        A position sees the earlier ones of its own segment; segment 0 is padding.
        """
        x = self.place(ids, sources, places, self.soft_tokens(sensed))
        x = constrain(self.after(x, shifted(x, positions)), None, "between")
        return self.decoder.packed(x, positions, segments)

    def read(self, ids: Array, sources: Array, places: Array, present: Array, sensed: Sensed) -> tuple[Array, Context]:
        """Reads right-padded prompts, ids, sources, places int and present bool [B T].

        Returns the hidden state of each prompt's last position [B D], and the context to go on from.
        """
        length = ids.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
        mask = jnp.tril(jnp.ones((length, length), bool))[None] & present[:, None, :]
        x = self.place(ids, sources, places, self.soft_tokens(sensed))
        hidden, cache = self.decoder(self.after(x, shifted(x, positions)), positions, mask)
        end = present.sum(1)[:, None, None] - 1
        last, x_last = (jnp.take_along_axis(a, end, 1)[:, 0] for a in (hidden, x))
        return last, Context(cache, positions, present, x_last)


def flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def shifted(x: Array, positions: Array) -> Array:
    """What stands before each position of its own document: x [B T D], positions int [B T]."""
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.where(positions[..., None] > 0, before, jnp.zeros((), x.dtype))


def packed_mask(segments: Array) -> Array:
    """bool [B T T]: earlier positions of the same segment, and itself. segments int [B T]."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segments[:, :, None] == segments[:, None, :]
    # a padding position sees itself alone, so that its softmax is finite
    return causal & same & (segments[:, None, :] > 0) | jnp.eye(length, dtype=bool)
