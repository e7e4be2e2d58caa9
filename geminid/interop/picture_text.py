"""The table of Gemma 3 with pictures: decoder, picture encoder, projection."""

from __future__ import annotations

from geminid.interop.table import Row
from geminid.interop.towers import MATRIX, PROJECTION, SIGLIP, under

DECODER = (
    Row("embedding", "embed_tokens.weight"),
    Row("layers/norm_attention/scale", "layers.{}.input_layernorm.weight"),
    Row("layers/attention/q", "layers.{}.self_attn.q_proj.weight", MATRIX),
    Row("layers/attention/k", "layers.{}.self_attn.k_proj.weight", MATRIX),
    Row("layers/attention/v", "layers.{}.self_attn.v_proj.weight", MATRIX),
    Row("layers/attention/out", "layers.{}.self_attn.o_proj.weight", MATRIX),
    Row("layers/attention/q_norm/scale", "layers.{}.self_attn.q_norm.weight"),
    Row("layers/attention/k_norm/scale", "layers.{}.self_attn.k_norm.weight"),
    Row("layers/post_attention/scale", "layers.{}.post_attention_layernorm.weight"),
    Row("layers/norm_mlp/scale", "layers.{}.pre_feedforward_layernorm.weight"),
    Row("layers/mlp/gate", "layers.{}.mlp.gate_proj.weight", MATRIX),
    Row("layers/mlp/up", "layers.{}.mlp.up_proj.weight", MATRIX),
    Row("layers/mlp/down", "layers.{}.mlp.down_proj.weight", MATRIX),
    Row("layers/post_mlp/scale", "layers.{}.post_feedforward_layernorm.weight"),
    Row("norm/scale", "norm.weight"),
)
PICTURE_TEXT = (
    *under(DECODER, "decoder/", "language_model.model."),
    *under(SIGLIP, "vision/", "vision_tower.vision_model."),
    *under(PROJECTION, "projection/", "multi_modal_projector."),
)
