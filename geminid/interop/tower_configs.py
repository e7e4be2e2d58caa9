"""The towers' config.json, read and written. A field that is absent has transformers' default; null counts as absent.

Fields that do not change the sums (training's, names of versions) are left alone. What changes them and is not ours is
an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geminid.config import DecoderConfig
from geminid.model.towers import PictureTextConfig, SiglipConfig, UsmConfig


@dataclass(frozen=True)
class Field:
    """theirs: key in config.json; ours: field of the dataclass; default: transformers'."""

    theirs: str
    ours: str
    default: Any


SIGLIP_FIELDS = (
    Field("image_size", "picture_size", 224),
    Field("patch_size", "patch", 16),
    Field("hidden_size", "width", 768),
    Field("intermediate_size", "mlp_width", 3072),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_heads", 12),
    Field("layer_norm_eps", "norm_epsilon", 1e-6),
)
SIGLIP_FIXED = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "vision_use_head": False}
SIGLIP_ABSENT = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "vision_use_head": True}
USM_FIELDS = (
    Field("input_feat_size", "num_mels", 128),
    Field("sscp_conv_channel_size", "subsample_widths", (128, 32)),
    Field("sscp_conv_kernel_size", "subsample_kernels", ((3, 3), (3, 3))),
    Field("sscp_conv_stride_size", "subsample_strides", ((2, 2), (2, 2))),
    Field("sscp_conv_group_norm_eps", "group_norm_epsilon", 1e-3),
    Field("hidden_size", "width", 1536),
    Field("conf_num_hidden_layers", "num_layers", 12),
    Field("conf_num_attention_heads", "num_heads", 8),
    Field("conf_attention_chunk_size", "chunk", 12),
    Field("conf_attention_context_left", "left", 13),
    Field("conf_attention_context_right", "right", 0),
    Field("conf_attention_logit_cap", "logit_cap", 50.0),
    Field("conf_conv_kernel_size", "conv_kernel", 5),
    Field("rms_norm_eps", "conv_norm_epsilon", 1e-6),
    Field("conf_residual_weight", "residual_weight", 0.5),
    Field("gradient_clipping", "clamp", 1e10),
    Field("conf_reduction_factor", "reduction", 4),
)


def read(fields: tuple[Field, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from their values."""
    found = {field.ours: values.get(field.theirs) for field in fields}
    return {field.ours: frozen(field.default if found[field.ours] is None else found[field.ours]) for field in fields}


def write(fields: tuple[Field, ...], config: Any) -> dict[str, Any]:
    """Their values from our fields, all of them spelled out."""
    return {field.theirs: thawed(getattr(config, field.ours)) for field in fields}


def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def thawed(value: Any) -> Any:
    return list(map(thawed, value)) if isinstance(value, tuple) else value


def siglip_config(values: Mapping[str, Any]) -> SiglipConfig:
    """From `vision_config`. ValueError for what our encoder does not compute."""
    for name, needed in SIGLIP_FIXED.items():
        if (value := values.get(name, SIGLIP_ABSENT[name])) != needed:
            raise ValueError(f"the picture encoder has '{name}' {value!r}; this one computes {needed!r} only")
    return SiglipConfig(**read(SIGLIP_FIELDS, values))


def siglip_values(config: SiglipConfig) -> dict[str, Any]:
    """For `vision_config`."""
    return {"model_type": "siglip_vision_model"} | write(SIGLIP_FIELDS, config) | SIGLIP_FIXED


def usm_config(values: Mapping[str, Any]) -> UsmConfig:
    """From Gemma 3n's `audio_config`. ValueError for what our encoder does not compute."""
    config = UsmConfig(**read(USM_FIELDS, values))
    if len(config.subsample_widths) != 2:
        raise ValueError(f"{len(config.subsample_widths)} subsampling convolutions; Gemma 3n's audio encoder has 2")
    return config


def usm_values(config: UsmConfig) -> dict[str, Any]:
    """For Gemma 3n's `audio_config`."""
    return {"model_type": "gemma3n_audio"} | write(USM_FIELDS, config)


def picture_text_config(values: Mapping[str, Any], decoder: DecoderConfig, num_ids: int) -> PictureTextConfig:
    """From Gemma 3's config.json, whose `text_config` gave `decoder` and `num_ids`."""
    num_soft = values.get("mm_tokens_per_image", 256)
    grid = math.isqrt(num_soft)
    if grid * grid != num_soft:
        raise ValueError(f"{num_soft} soft tokens a picture are not a square; Gemma 3 pools to a square grid")
    picture_id = values.get("image_token_index", values.get("image_token_id", 262_144))
    return PictureTextConfig(decoder, siglip_config(values["vision_config"]), num_ids, picture_id, grid)


def picture_text_values(config: PictureTextConfig, text_values: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3's config.json around the `text_config` that is given."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": dict(text_values),
        "vision_config": siglip_values(config.vision),
        "mm_tokens_per_image": config.num_soft_tokens,
        "image_token_index": config.picture_id,
    }
