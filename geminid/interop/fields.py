"""Fields of a config.json, read and written.

A field that is absent has transformers' default; null counts as absent. Fields that do not change the sums (training's,
names of versions, ids that only a tokenizer or a sampler reads) are left alone. What changes them and is not ours, and
what is not known at all, is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

INERT = frozenset(
    (
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)


@dataclass(frozen=True)
class Field:
    """theirs: key in config.json; ours: field of the dataclass; default: transformers'."""

    theirs: str
    ours: str
    default: Any


def read(fields: Iterable[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from their values. ValueError for a value of another kind than the default."""
    return {field.ours: frozen(_value(field, values.get(field.theirs))) for field in fields}


def _value(field: Field, value: Any) -> Any:
    if value is None:
        return field.default
    wanted = type(field.default)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is not type(frozen(value)):
        names = {int: "a whole number", float: "a number", tuple: "a list", str: "a text", bool: "true or false"}
        raise ValueError(f"config.json: '{field.theirs}' is {shortened(value)}; it must be {names[wanted]}")
    return value


def write(fields: Iterable[Field], config: Any) -> dict[str, Any]:
    """Their values from our fields, all of them spelled out."""
    return {field.theirs: thawed(getattr(config, field.ours)) for field in fields}


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], whose: str) -> None:
    """ValueError for fields that have a value and a meaning which nothing here reads."""
    unknown = sorted(k for k, value in values.items() if value is not None and k not in INERT and k not in known)
    if unknown:
        shown = ", ".join(f"'{name}' {shortened(values[name])}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"config.json of {whose} has fields that are not known and may change the sums: {shown}{more}")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def thawed(value: Any) -> Any:
    return list(map(thawed, value)) if isinstance(value, tuple) else value
