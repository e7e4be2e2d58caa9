"""The towers' tables: SigLIP as in Gemma 3, the audio encoder of Gemma 3n.

Names are those of the released Gemma 3 files, which every version of transformers reads. Newer versions write
`vision_tower.` for `vision_tower.vision_model.`, and a loaded model's own names begin with `model.`; `plain_names`
brings all of them to the released ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from geminid.interop.table import MATRIX, Row, listed

Tensor = TypeVar("Tensor")

KERNEL, DEPTHWISE = (2, 3, 1, 0), (2, 1, 0)  # theirs: output first


def linear(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", MATRIX), Row(f"{ours}/bias", f"{theirs}.bias")]


def layer_norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


SIGLIP = (
    Row("patches/kernel", "embeddings.patch_embedding.weight", KERNEL),
    Row("patches/bias", "embeddings.patch_embedding.bias"),
    Row("positions", "embeddings.position_embedding.weight"),
    *layer_norm("layers/norm_attention", "encoder.layers.{}.layer_norm1"),
    *linear("layers/q", "encoder.layers.{}.self_attn.q_proj"),
    *linear("layers/k", "encoder.layers.{}.self_attn.k_proj"),
    *linear("layers/v", "encoder.layers.{}.self_attn.v_proj"),
    *linear("layers/out", "encoder.layers.{}.self_attn.out_proj"),
    *layer_norm("layers/norm_mlp", "encoder.layers.{}.layer_norm2"),
    *linear("layers/up", "encoder.layers.{}.mlp.fc1"),
    *linear("layers/down", "encoder.layers.{}.mlp.fc2"),
    *layer_norm("norm", "post_layernorm"),
)
PROJECTION = (
    Row("norm/scale", "mm_soft_emb_norm.weight"),
    Row("out", "mm_input_projection_weight"),  # theirs: input first, here alone
)


def half_mlp(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/norm/scale", f"{theirs}.pre_layer_norm.weight"),
        Row(f"{ours}/up", f"{theirs}.ffw_layer_1.weight", MATRIX),
        Row(f"{ours}/down", f"{theirs}.ffw_layer_2.weight", MATRIX),
        Row(f"{ours}/post_norm/scale", f"{theirs}.post_layer_norm.weight"),
    ]


USM = (
    Row("subsample/convs/0/kernel", "subsample_conv_projection.conv_0.conv.weight", KERNEL),
    Row("subsample/norms/0/scale", "subsample_conv_projection.conv_0.norm.weight"),
    Row("subsample/convs/1/kernel", "subsample_conv_projection.conv_1.conv.weight", KERNEL),
    Row("subsample/norms/1/scale", "subsample_conv_projection.conv_1.norm.weight"),
    Row("subsample/out", "subsample_conv_projection.input_proj_linear.weight", MATRIX),
    *half_mlp("layers/first", "conformer.{}.ffw_layer_start"),
    Row("layers/norm_attention/scale", "conformer.{}.attention.pre_attn_norm.weight"),
    Row("layers/attention/q", "conformer.{}.attention.attn.q_proj.weight", MATRIX),
    Row("layers/attention/k", "conformer.{}.attention.attn.k_proj.weight", MATRIX),
    Row("layers/attention/v", "conformer.{}.attention.attn.v_proj.weight", MATRIX),
    Row("layers/attention/per_dim_scale", "conformer.{}.attention.attn.per_dim_scale"),
    Row("layers/attention/position", "conformer.{}.attention.attn.relative_position_embedding.pos_proj.weight", MATRIX),
    Row("layers/out", "conformer.{}.attention.post.weight", MATRIX),
    Row("layers/post_attention/scale", "conformer.{}.attention.post_norm.weight"),
    Row("layers/convolution/norm/scale", "conformer.{}.lconv1d.pre_layer_norm.weight"),
    Row("layers/convolution/expand", "conformer.{}.lconv1d.linear_start.weight", MATRIX),
    Row("layers/convolution/depthwise", "conformer.{}.lconv1d.depthwise_conv1d.weight", DEPTHWISE),
    Row("layers/convolution/norm_depthwise/scale", "conformer.{}.lconv1d.conv_norm.weight"),
    Row("layers/convolution/contract", "conformer.{}.lconv1d.linear_end.weight", MATRIX),
    *half_mlp("layers/last", "conformer.{}.ffw_layer_end"),
    Row("layers/norm/scale", "conformer.{}.norm.weight"),
)

SPELLINGS = (
    (re.compile(r"^model\.(?=vision_tower\.|multi_modal_projector\.)"), ""),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors of a Gemma 3 with pictures, under the names of the released files."""
    plain = {}
    for name, tensor in tensors.items():
        for pattern, spelling in SPELLINGS:
            name = pattern.sub(spelling, name)
        if name in plain:
            raise ValueError(f"tensor '{name}' is there twice, in two spellings; remove one")
        plain[name] = tensor
    return plain


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of a model, without the prefix; ValueError where there are none."""
    part = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not part:
        raise ValueError(f"no tensor's name begins with '{prefix}'; there are {listed(tensors)}")
    return part
