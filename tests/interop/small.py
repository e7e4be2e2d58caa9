"""The small models of the parity tests and of the committed fixtures, on our side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from geminid.interop.picture_text import PICTURE_TEXT
from geminid.interop.table import export_params, import_module
from geminid.interop.text import TEXT, text_config
from geminid.interop.tower_configs import picture_text_config, usm_config
from geminid.interop.towers import USM, plain_names
from geminid.model.decoder import Decoder
from geminid.model.multimodal import packed_mask
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
    config = picture_text_config(values)
    return import_module(lambda: PictureText(config, rngs=nnx.Rngs(0)), PICTURE_TEXT, plain_names(tensors))


def text(values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Decoder:
    """Ours with their config.json and weights of the text model alone."""
    config, num_ids = text_config(values)
    return import_module(lambda: Decoder(config, num_ids, rngs=nnx.Rngs(0)), TEXT, tensors)


def text_logits(decoder: Decoder, ids: Any, segments: Any, positions: Any) -> Any:
    """Logits [B T V] of packed rows, int [B T] each; segment 0 is padding."""
    hidden, _ = decoder(decoder.embed(ids), positions, packed_mask(segments))
    return decoder.logits(hidden)


def next_id_loss(decoder: Decoder, ids: Any, present: Any) -> Any:
    """Mean cross-entropy of each present id after present ones; ids int, present bool [B T]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    logits = text_logits(decoder, ids, present.astype(jnp.int32), positions)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    counted = present[:, :-1] & present[:, 1:]
    return jnp.sum(losses * counted) / counted.sum()


def gradients(decoder: Decoder, ids: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """Of `next_id_loss`, under their names and in their layout."""
    gradient = jax.jit(nnx.grad(next_id_loss))(decoder, ids, present)
    return export_params(nnx.to_pure_dict(gradient), TEXT)
