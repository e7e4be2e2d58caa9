"""The small models of the parity tests and of the committed fixtures, on our side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from geminid.config import DecoderConfig
from geminid.interop.picture_text import PICTURE_TEXT
from geminid.interop.table import import_module
from geminid.interop.tower_configs import picture_text_config, usm_config
from geminid.interop.towers import USM, plain_names
from geminid.model.picture_text import PictureText
from geminid.model.usm import UsmEncoder

MOST = 1e-4  # of the largest feature: what "the same" means between float32 implementations


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference beside the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def usm(values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> UsmEncoder:
    """Ours with their `audio_config` and weights."""
    config = usm_config(values)
    return import_module(lambda: UsmEncoder(config, rngs=nnx.Rngs(0)), USM, tensors)


def picture_text(values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> PictureText:
    """Ours with their config.json and weights."""
    text = values["text_config"]
    kinds = text["layer_types"]
    decoder = DecoderConfig(
        num_layers=len(kinds),
        width=text["hidden_size"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        mlp_width=text["intermediate_size"],
        rope_theta=1e6,
        window=text["sliding_window"],
        local_per_global=kinds.index("full_attention"),
        post_norm=True,
    )
    config = picture_text_config(values, decoder, text["vocab_size"])
    return import_module(lambda: PictureText(config, rngs=nnx.Rngs(0)), PICTURE_TEXT, plain_names(tensors))
