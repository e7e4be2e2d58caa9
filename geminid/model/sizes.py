"""How large a recipe's model is, without making it."""

from __future__ import annotations

import jax
from flax import nnx

from geminid.config import Recipe
from geminid.model.codec import ImageCodec
from geminid.model.multimodal import Model
from geminid.tokens.ids import special_names


def count(tree: object) -> int:
    """Number of values in a pytree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_params(recipe: Recipe, num_ids: int | None = None) -> int:
    """Parameters of decoder, encoders and codec. num_ids: size of the id space when its tokenizer is trained."""
    if num_ids is None:
        num_ids = len(special_names(recipe)) + recipe.text.vocab_size + recipe.codec.num_codes
    size = num_ids
    model = nnx.eval_shape(lambda: Model(recipe, size, rngs=nnx.Rngs(0)))
    codec = nnx.eval_shape(lambda: ImageCodec(recipe.codec, rngs=nnx.Rngs(0)))
    return count(nnx.state(model, nnx.Param)) + count(nnx.state(codec, nnx.Param))
