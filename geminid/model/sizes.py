"""How large a recipe's model is, without making it."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from geminid.config import Recipe
from geminid.model.codec import ImageCodec
from geminid.model.multimodal import Model
from geminid.tokens import ids


def count(tree: object) -> int:
    """Number of values in a pytree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_params(recipe: Recipe, num_ids: int | None = None) -> int:
    """Parameters of decoder, encoders and codec. num_ids: size of the id space when its tokenizer is trained.

    The encoders' layers are all alike, so the count is linear in their number: one and two layers are traced.
    """
    if num_ids is None:
        num_ids = ids.num_ids(recipe)

    def with_layers(vision: int, audio: int) -> int:
        small = dataclasses.replace(
            recipe,
            vision=dataclasses.replace(recipe.vision, num_layers=vision),
            audio=dataclasses.replace(recipe.audio, num_layers=audio),
        )
        return count(nnx.state(nnx.eval_shape(lambda: Model(small, num_ids, rngs=nnx.Rngs(0))), nnx.Param))

    one = with_layers(1, 1)
    seeing, hearing = with_layers(2, 1) - one, with_layers(1, 2) - one
    codec = nnx.eval_shape(lambda: ImageCodec(recipe.codec, rngs=nnx.Rngs(0)))
    layers = (recipe.vision.num_layers - 1) * seeing + (recipe.audio.num_layers - 1) * hearing
    return one + layers + count(nnx.state(codec, nnx.Param))
