"""What a recipe's values may be: one table of ranges, and the fields that must fit each other. Plain values, no JAX."""

from __future__ import annotations

import math
from typing import Any

_ANY = math.inf
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.seed": (0, 2**32 - 1),
    "data.num_concepts": (3, _ANY),  # a question about order needs three
    "data.picture_size": (8, 4096),
    "data.synthetic_voices": (1, 1000),
    "data.clip_max_s": (0.1, 3600),
    "data.frames": (1, 10_000),
    "text.vocab_size": (300, 10_000_000),  # 256 are bytes
    "codec.downsample": (1, 256),
    "codec.width": (1, _ANY),
    "codec.num_blocks": (0, _ANY),
    "vision.stem_blocks": (0, _ANY),
    "vision.width": (1, _ANY),
    "vision.num_layers": (0, _ANY),
    "vision.num_heads": (1, _ANY),
    "vision.soft_grid": (1, 64),
    "audio.sample_rate": (8000, 48_000),
    "audio.num_mels": (1, 512),
    "audio.window_s": (0.005, 0.2),
    "audio.hop_s": (0.001, 0.1),
    "audio.max_s": (0.1, 3600),
    "audio.conv_blocks": (0, _ANY),
    "audio.width": (1, _ANY),
    "audio.num_layers": (0, _ANY),
    "audio.num_heads": (1, _ANY),
    "audio.conv_kernel": (1, 1000),
    "audio.reduction": (1, 1000),
    "decoder.num_layers": (1, 100_000),
    "decoder.width": (1, _ANY),
    "decoder.num_heads": (1, _ANY),
    "decoder.num_kv_heads": (1, _ANY),
    "decoder.head_dim": (2, _ANY),
    "decoder.mlp_width": (1, _ANY),
    "decoder.norm_epsilon": (0, 1),
    "decoder.query_scalar": (1e-6, _ANY),
    "decoder.rope_stretch": (1, _ANY),
    "decoder.rope_theta": (1, _ANY),
    "decoder.local_rope_theta": (1, _ANY),
    "decoder.attention_soft_cap": (1e-6, _ANY),
    "decoder.logit_soft_cap": (1e-6, _ANY),
    "decoder.window": (1, _ANY),
    "decoder.local_per_global": (0, _ANY),
    "decoder.z_loss": (0, _ANY),
    "decoder.attention_block": (1, _ANY),
    "decoder.attention_documents": (1, _ANY),
    "joint.shards": (1, _ANY),
    "joint.row_length": (16, _ANY),
    "joint.max_pictures": (1, _ANY),
    "joint.max_clips": (1, _ANY),
    "joint.answer_share": (0, 1),
    "joint.logit_chunk": (1, _ANY),
    "joint.lookahead": (1, _ANY),
    "joint.encoder_rate": (0, 1),
    "joint.code_weight": (0, _ANY),
    "joint.code_spread": (0, 10),
    "joint.misread_codes": (0, 1),
    "joint.misread_words": (0, 1),
    "joint.prompt_dropout": (0, 1),
    "judge_steps": (1, _ANY),
}
STAGES = ("codec_stage", "vision_stage", "audio_stage", "joint.stage")
STAGE_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, _ANY),
    "batch": (1, 10**9),
    "save_every": (1, _ANY),
    "log_every": (1, _ANY),
    "optimiser.learning_rate": (0, 10),
    "optimiser.final_fraction": (0, 1),
    "optimiser.warmup_steps": (0, _ANY),
    "optimiser.momentum": (0, 1),
    "optimiser.beta1": (0, 1),
    "optimiser.beta2": (0, 1),
    "optimiser.weight_decay": (0, 1),
    "optimiser.clip_norm": (0, _ANY),
}
CHOICES = {
    "decoder.activation": ("gelu_tanh", "silu"),
    "decoder.attention": ("dense", "blockwise"),
    "decoder.remat": ("none", "full", "offload", "attended", "dots"),
    "decoder.dtype": ("float32", "bfloat16"),
    "vision.dtype": ("float32", "bfloat16"),
    "audio.dtype": ("float32", "bfloat16"),
}
STAGE_CHOICES = {"optimiser.matrices": ("muon", "adamw"), "optimiser.muon_dtype": ("float32", "bfloat16")}
MAX_CODES = 32  # a side of a written image, see geminid.tokens.ids
DRAW_EXTRA = 16  # ids of a drawing's document beside its codes


def check(recipe: Any) -> None:
    """ValueError names the first field of a `geminid.config.Recipe` out of its range, or that does not fit another."""
    ranges = RANGES | {f"{stage}.{name}": limits for stage in STAGES for name, limits in STAGE_RANGES.items()}
    for path, (low, high) in ranges.items():
        value = field_at(recipe, path)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            most = f"between {low:g} and {high:g}" if high < _ANY else f"at least {low:g}"
            raise ValueError(f"'{path}' is {value:g}; it must be {most}")
    choices = CHOICES | {f"{stage}.{name}": known for stage in STAGES for name, known in STAGE_CHOICES.items()}
    for path, known in choices.items():
        if (word := field_at(recipe, path)) not in known:
            raise ValueError(f"'{path}' is {word!r}; known: {', '.join(known)}")
    for path, numbers, least in (
        ("codec.levels", recipe.codec.levels, 2),
        ("vision.stem_widths", recipe.vision.stem_widths, 1),
        ("audio.conv_widths", recipe.audio.conv_widths, 1),
    ):
        if not numbers or min(numbers) < least:
            raise ValueError(f"'{path}' is {list(numbers)}; it must be a list of numbers, each at least {least}")
    mixture = {name: float(share) for name, share in vars(recipe.joint.mixture).items()}
    if min(mixture.values()) < 0 or not sum(mixture.values()):
        raise ValueError(f"'joint.mixture' is {mixture}; none may be below 0, and one must be above it")
    if not recipe.data.languages:
        raise ValueError("'data.languages' is empty; name at least one, such as en")
    if recipe.data.held_out_style not in recipe.data.styles:
        raise ValueError(
            f"'data.held_out_style' is {recipe.data.held_out_style!r}, which is none of data.styles:"
            f" {', '.join(recipe.data.styles)}"
        )
    _check_shapes(recipe)


def _check_shapes(recipe: Any) -> None:
    """Fields that must fit each other."""
    for path, whole, parts in (
        ("decoder.num_heads", recipe.decoder.num_heads, ("decoder.num_kv_heads", recipe.decoder.num_kv_heads)),
        ("decoder.head_dim", recipe.decoder.head_dim, ("2, for rotary positions", 2)),
        ("vision.width", recipe.vision.width, ("vision.num_heads", recipe.vision.num_heads)),
        ("audio.width", recipe.audio.width, ("audio.num_heads", recipe.audio.num_heads)),
        ("audio.width", recipe.audio.width, ("2, for a sine and a cosine", 2)),
        ("vision.width", recipe.vision.width, ("4, for sines and cosines of rows and columns", 4)),
        ("data.picture_size", recipe.data.picture_size, ("codec.downsample", recipe.codec.downsample)),
        ("joint.stage.batch", recipe.joint.stage.batch, ("joint.shards", recipe.joint.shards)),
    ):
        name, divisor = parts
        if whole % divisor:
            named = f"'{name}', {divisor}" if "." in name else name
            raise ValueError(f"'{path}' is {whole}; it must be a multiple of {named}")
    side = recipe.data.picture_size // recipe.codec.downsample
    if side > MAX_CODES:
        raise ValueError(
            f"pictures of {recipe.data.picture_size} pixels with 'codec.downsample' {recipe.codec.downsample} have"
            f" {side} codes a side; at most {MAX_CODES}: raise codec.downsample"
        )
    joint, codes = recipe.joint, side * side
    if not joint.mixture.draw:
        return
    if joint.row_length < codes + DRAW_EXTRA:
        raise ValueError(
            f"'joint.row_length' is {joint.row_length}; a drawing of {codes} codes needs at least {codes + DRAW_EXTRA}"
        )
    answers = joint.answer_share * joint.stage.batch * joint.row_length / joint.shards
    if answers < codes + 5:
        raise ValueError(
            f"'joint.answer_share' {joint.answer_share:g} leaves loss on {answers:g} positions of a batch; a drawing of"
            f" {codes} codes needs {codes + 5}: raise it, joint.stage.batch or joint.row_length"
        )


def field_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
