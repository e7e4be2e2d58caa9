"""Gemma 3's text model: its table, and its config.json (`gemma3_text`, or `text_config` of the one with pictures)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geminid.config import DecoderConfig
from geminid.interop.fields import Field, read, refuse_unknown, shortened, write
from geminid.interop.table import MATRIX, Row, under

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
TEXT = under(DECODER, "", "model.")

LOCAL, GLOBAL = "sliding_attention", "full_attention"
MOST_LAYERS = 1000  # more is a damaged file
NUM_IDS = Field("vocab_size", "num_ids", 262_208)
FIELDS = (
    Field("num_hidden_layers", "num_layers", 26),
    Field("hidden_size", "width", 2304),
    Field("intermediate_size", "mlp_width", 9216),
    Field("num_attention_heads", "num_heads", 8),
    Field("num_key_value_heads", "num_kv_heads", 4),
    Field("head_dim", "head_dim", 256),
    Field("rms_norm_eps", "norm_epsilon", 1e-6),
    Field("query_pre_attn_scalar", "query_scalar", 256.0),
)
OTHERS = (  # read one by one
    Field("hidden_activation", "activation", "gelu_pytorch_tanh"),
    Field("sliding_window", "window", 4096),
    Field("sliding_window_pattern", "period", 6),
    Field("rope_theta", "rope_theta", 1e6),
    Field("rope_local_base_freq", "local_rope_theta", 1e4),
)
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu"}
# transformers reads `attn_logit_softcapping` and then does not apply it: whose sums would be meant is not known.
FIXED = {
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
}
NEEDED = {"post_norm": True, "scale_embedding": True, "smear": False, "attention_soft_cap": None}  # of a DecoderConfig
KNOWN = {
    *(field.theirs for field in (NUM_IDS, *FIELDS, *OTHERS)),
    *FIXED,
    "final_logit_softcapping",
    "layer_types",
    "rope_parameters",
    "rope_scaling",
    "_sliding_window_pattern",  # transformers writes it beside layer_types and does not read it
}


def text_config(values: Mapping[str, Any]) -> tuple[DecoderConfig, int]:
    """The decoder and the number of its ids. ValueError, one line, for what our decoder does not compute."""
    refuse_unknown(values, KNOWN, "the text model")
    for name, needed in FIXED.items():
        if (value := values.get(name)) is not None and value != needed:
            raise ValueError(f"config.json: '{name}' is {shortened(value)}; this decoder computes {needed!r} only")
    sizes, other = read((NUM_IDS, *FIELDS), values), read(OTHERS, values)
    for field in (NUM_IDS, *FIELDS):
        if not sizes[field.ours] > 0:
            raise ValueError(f"config.json: '{field.theirs}' is {sizes[field.ours]}; it must be above 0")
    if sizes["num_layers"] > MOST_LAYERS:
        raise ValueError(f"config.json: 'num_hidden_layers' is {sizes['num_layers']}; at most {MOST_LAYERS} are read")
    if sizes["head_dim"] % 2 or sizes["num_heads"] % sizes["num_kv_heads"]:
        raise ValueError(
            f"config.json: 'head_dim' {sizes['head_dim']} must be even, and 'num_attention_heads' "
            f"{sizes['num_heads']} divisible by 'num_key_value_heads' {sizes['num_kv_heads']}"
        )
    if other["activation"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json: 'hidden_activation' is {other['activation']!r}; this decoder has {known}")
    local_per_global = _local_per_global(values.get("layer_types"), sizes["num_layers"], other["period"])
    if local_per_global and other["window"] < 1:
        raise ValueError(f"config.json: 'sliding_window' is {other['window']}; it must be at least 1")
    return DecoderConfig(
        **{name: value for name, value in sizes.items() if name != "num_ids"},
        **_rotary(values, other),
        window=other["window"] if local_per_global else None,
        local_per_global=local_per_global,
        post_norm=True,
        logit_soft_cap=read([Field("final_logit_softcapping", "cap", 0.0)], values)["cap"] or None,
        z_loss=0.0,
        activation=ACTIVATIONS[other["activation"]],
        scan_layers=True,
    ), sizes["num_ids"]


def _local_per_global(kinds: Any, num_layers: int, period: int) -> int:
    """Local layers between two global ones; as many as there are layers where none is global."""
    if kinds is None:
        if period < 1:
            raise ValueError(f"config.json: 'sliding_window_pattern' is {period}; it must be at least 1")
        return min(period - 1, num_layers)
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in (LOCAL, GLOBAL) for kind in kinds):
        raise ValueError(
            f"config.json: 'layer_types' is {shortened(kinds)}; it must be a list of {num_layers}, "
            f"each {LOCAL} or {GLOBAL}"
        )
    local = kinds.index(GLOBAL) if GLOBAL in kinds else num_layers
    if kinds != _kinds(local, num_layers):
        raise ValueError(
            f"config.json: 'layer_types' begins with {local} x {LOCAL} and one {GLOBAL} but does not repeat them; "
            "this decoder has one pattern from the first layer to the last"
        )
    return local


def _kinds(local_per_global: int, num_layers: int) -> list[str]:
    return [GLOBAL if (i + 1) % (local_per_global + 1) == 0 else LOCAL for i in range(num_layers)]


def _rotary(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta, local_rope_theta and rope_stretch, from `rope_parameters` or from the older three fields."""
    by_kind = values.get("rope_parameters") or {}
    if not isinstance(by_kind, dict) or set(by_kind) - {LOCAL, GLOBAL}:
        raise ValueError(f"config.json: 'rope_parameters' is {shortened(by_kind)}; it must hold {LOCAL} and {GLOBAL}")
    stretches, thetas = {}, {}
    for kind, fallback in ((LOCAL, other["local_rope_theta"]), (GLOBAL, other["rope_theta"])):
        rope = by_kind.get(kind) or {}
        scaling = values.get("rope_scaling") if kind == GLOBAL else None
        if not isinstance(rope, dict) or not isinstance(scaling or {}, dict):
            raise ValueError(f"config.json: the rotary positions of {kind} are {shortened(scaling or rope)}, no object")
        thetas[kind], stretches[kind] = _turned({**rope, **(scaling or {})}, fallback, kind)
    if stretches[LOCAL] != 1.0:
        raise ValueError(f"config.json: rotary positions of {LOCAL} are divided by {stretches[LOCAL]}; only 1 is read")
    return {"rope_theta": thetas[GLOBAL], "local_rope_theta": thetas[LOCAL], "rope_stretch": stretches[GLOBAL]}


def _turned(rope: Mapping[str, Any], fallback: float, kind: str) -> tuple[float, float]:
    """Theta, and by what positions are divided."""
    how = rope.get("rope_type", rope.get("type", "default"))
    unknown = [k for k in rope if k not in ("rope_type", "type", "rope_theta", "factor") and rope[k] is not None]
    if how not in ("default", "linear") or unknown:
        what = f"field '{unknown[0]}'" if unknown else f"type {shortened(how)}"
        raise ValueError(
            f"config.json: rotary positions of {kind} have the {what}; this decoder has default and linear"
        )
    found = read((Field("rope_theta", "theta", fallback), Field("factor", "factor", 1.0)), rope)
    if min(found.values()) <= 0:
        raise ValueError(f"config.json: rotary positions of {kind} have {found}; both must be above 0")
    return found["theta"], found["factor"] if how == "linear" else 1.0


def text_values(config: DecoderConfig, num_ids: int) -> dict[str, Any]:
    """`text_config`, in the older and the newer spelling. ValueError where Gemma 3 has no such decoder."""
    for name, needed in (
        ("post_norm", True),
        ("scale_embedding", True),
        ("smear", False),
        ("attention_soft_cap", None),
    ):
        if (value := getattr(config, name)) != needed:
            raise ValueError(f"a decoder with '{name}' {value} has no form in Gemma 3's layout, which has {needed}")
    scalar = config.query_scalar or config.head_dim
    linear = {"rope_type": "linear", "factor": config.rope_stretch}
    stretched = config.rope_stretch != 1.0
    local_per_global = config.local_per_global if config.window is not None else 0
    return {
        "model_type": "gemma3_text",
        **write(FIELDS, config),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "vocab_size": num_ids,
        "hidden_activation": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[config.activation],
        "final_logit_softcapping": config.logit_soft_cap,
        "sliding_window": config.window or OTHERS[1].default,
        "layer_types": _kinds(local_per_global, config.num_layers),
        "rope_parameters": {
            LOCAL: {"rope_type": "default", "rope_theta": config.local_rope_theta},
            GLOBAL: {"rope_type": "default", "rope_theta": config.rope_theta} | (linear if stretched else {}),
        },
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": linear if stretched else None,
        **FIXED,
    }
