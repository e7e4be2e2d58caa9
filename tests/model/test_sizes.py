"""The number of parameters without making them is the number of parameters made."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from geminid import recipes
from geminid.config import AudioConfig, CodecConfig, DecoderConfig, TextConfig, VisionConfig
from geminid.model.codec import ImageCodec
from geminid.model.decoder import Decoder
from geminid.model.multimodal import Model
from geminid.model.sizes import count, num_params
from geminid.tokens.ids import special_names

pytestmark = pytest.mark.usefixtures("quick_compiles")
RECIPE = dataclasses.replace(
    recipes.demo(),
    text=TextConfig(vocab_size=300),
    codec=CodecConfig(levels=(4, 3), width=8, num_blocks=1),
    vision=VisionConfig(width=8, num_layers=2, num_heads=2),  # equal widths: few programs to compile
    audio=AudioConfig(num_mels=4, conv_widths=(2,), width=8, num_layers=3, num_heads=2),
    decoder=DecoderConfig(num_layers=3, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=16),
)


def test_count():
    assert count({"a": np.zeros((2, 3)), "b": [np.zeros(()), np.zeros(5)]}) == 12


def decoder_params(config: DecoderConfig, num_ids: int) -> int:
    """By hand: embedding, attention, gated MLP, norms."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.width * (heads + 2 * kv_heads) + heads * config.width + 2 * config.head_dim
    norms = (4 if config.post_norm else 2) * config.width
    return (num_ids + 1) * config.width + config.num_layers * (attention + 3 * config.width * config.mlp_width + norms)


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_decoder_has_what_the_formula_says(post_norm):
    config = dataclasses.replace(RECIPE.decoder, post_norm=post_norm)
    made = nnx.eval_shape(lambda: Decoder(config, 50, rngs=nnx.Rngs(0)))
    assert count(nnx.state(made, nnx.Param)) == decoder_params(config, 50)


def test_a_model_that_is_made_has_as_many(monkeypatch):
    for name in ("variance_scaling", "normal"):  # zeros: nothing is drawn, so little is compiled
        monkeypatch.setattr(jax.nn.initializers, name, lambda *_: jax.nn.initializers.zeros)
    num_ids = len(special_names(RECIPE)) + 300 + 12  # by default: specials, text pieces, image codes
    rngs = nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))  # quicker to compile than the default generator
    made = [Model(RECIPE, num_ids, rngs=rngs), ImageCodec(RECIPE.codec, rngs=rngs)]
    by_hand = sum(leaf.size for module in made for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(module))))
    assert num_params(RECIPE) == by_hand


def test_the_demo_has_about_three_million():
    assert 2e6 < num_params(recipes.demo()) < 5e6
