"""The towers' config.json, read and written; see `geminid.interop.fields`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geminid.interop.fields import Field, read, refuse_unknown, shortened, write
from geminid.interop.text import text_config, text_values
from geminid.model.towers import PictureTextConfig, SiglipConfig, UsmConfig

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
PICTURE_TEXT_FIELDS = (
    Field("mm_tokens_per_image", "num_soft", 256),
    Field("image_token_index", "picture_id", 262_144),
    Field("image_token_id", "token_id", 262_144),
)
PICTURE_TEXT_KNOWN = {
    *(field.theirs for field in PICTURE_TEXT_FIELDS),
    *("text_config", "vision_config", "tie_word_embeddings"),
    *("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id"),  # only a tokenizer reads them
}


def siglip_config(values: Mapping[str, Any]) -> SiglipConfig:
    """From `vision_config`. ValueError for what our encoder does not compute."""
    refuse_unknown(values, {field.theirs for field in SIGLIP_FIELDS} | SIGLIP_FIXED.keys(), "the picture encoder")
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


def picture_text_config(values: Mapping[str, Any]) -> PictureTextConfig:
    """From Gemma 3's config.json. ValueError for what our model does not compute."""
    refuse_unknown(values, PICTURE_TEXT_KNOWN, "Gemma 3 with pictures")
    decoder, num_ids = text_config(_part(values, "text_config"))
    if decoder.logit_soft_cap is not None or values.get("tie_word_embeddings") is False:
        raise ValueError("config.json: with pictures Gemma 3 has a tied embedding and no 'final_logit_softcapping'")
    found = read(PICTURE_TEXT_FIELDS, values)
    grid = math.isqrt(max(0, found["num_soft"]))
    if grid * grid != found["num_soft"]:
        raise ValueError(f"{found['num_soft']} soft tokens a picture are not a square; Gemma 3 pools to a square grid")
    picture_id = found["token_id"] if values.get("image_token_index") is None else found["picture_id"]
    return PictureTextConfig(decoder, siglip_config(_part(values, "vision_config")), num_ids, picture_id, grid)


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name) or {}
    if not isinstance(part, dict):
        raise ValueError(f"config.json: '{name}' is {shortened(part)}; it must be an object")
    return part


def picture_text_values(config: PictureTextConfig) -> dict[str, Any]:
    """Gemma 3's config.json."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text_values(config.decoder, config.num_ids),
        "vision_config": siglip_values(config.vision),
        "mm_tokens_per_image": config.num_soft_tokens,
        "image_token_index": config.picture_id,
    }
