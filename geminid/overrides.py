"""Single fields of a recipe changed from text: `joint.stage.steps=200`. Plain values, no JAX.

The text is read as the field's annotated type, so a recipe can never hold a string where it wants a number.
    int, float      200, 1_000, 2e-3
    bool            true, false
    X | None        none, or as X
    Literal         one of its values
    tuple[X, ...]   en,fr,es (also in brackets); nothing after `=`: the empty tuple
    str             as it stands
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

Config = TypeVar("Config")

_MISSING = object()


def override(recipe: Config, assignments: Sequence[str]) -> Config:
    """`recipe` with every `path.to.field=value` applied at once; the last one wins.

    All values are in place before any `__post_init__` sees them, so fields that only make sense
    together can be changed together. Raises ValueError: no `=`, an unknown field (lists those of that
    level), a group where a field belongs, text that is not a value of the field's type.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"override {assignment!r} is not of the form path.to.field=value")
        _plant(tree, path.strip(), text.strip())
    return _apply(recipe, tree, "")


def _plant(tree: dict[str, Any], path: str, text: str) -> None:
    *groups, leaf = path.split(".")
    for i, name in enumerate(groups):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override '{path}': '{'.'.join(groups[: i + 1])}' was given a value too")
    if isinstance(tree.get(leaf), dict):
        raise ValueError(f"override '{path}': fields inside it were given values too")
    tree[leaf] = text


def _apply(config: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    if not tree:
        return config
    annotations = typing.get_type_hints(type(config))
    fields = [f.name for f in dataclasses.fields(config) if f.init]
    changes = {}
    for name, wanted in tree.items():
        path = prefix + name
        if name not in fields:
            where = f"'{prefix[:-1]}'" if prefix else "the recipe"
            raise ValueError(f"unknown field '{name}' in {where}; fields: {', '.join(fields)}")
        value = getattr(config, name)
        if isinstance(wanted, str):
            changes[name] = _read(wanted, annotations[name], path)
        elif dataclasses.is_dataclass(value):
            changes[name] = _apply(value, wanted, path + ".")
        else:
            raise ValueError(f"'{path}' holds {value!r}, which has no field '{next(iter(wanted))}'")
    return dataclasses.replace(config, **changes)


def _read(text: str, annotation: Any, path: str) -> Any:
    """`text` as a value of `annotation`; ValueError names `path` and what was expected."""
    if dataclasses.is_dataclass(annotation):
        fields = ", ".join(f.name for f in dataclasses.fields(annotation))
        raise ValueError(f"'{path}' is a group; set one of its fields: {fields}")
    value = _parse(text, annotation)
    if value is _MISSING:
        raise ValueError(f"'{path}' is {_describe(annotation)}; {text!r} is not")
    return value


def _parse(text: str, annotation: Any) -> Any:
    """A value of `annotation`, or `_MISSING` where the text is none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        values = (_parse(text, a) for a in arguments if a is not type(None))
        return next((v for v in values if v is not _MISSING), _MISSING)
    if origin is Literal:
        return next((a for a in arguments if str(a) == text), _MISSING)
    if origin is tuple:
        return _parse_tuple(text, arguments)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), _MISSING)
    if annotation is str:
        return text
    if annotation in (int, float):
        try:
            value = annotation(text)
        except ValueError:
            return _MISSING
        return _MISSING if isinstance(value, float) and not math.isfinite(value) else value
    return _MISSING


def _parse_tuple(text: str, arguments: tuple[Any, ...]) -> Any:
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1].strip()
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":  # nothing at all, or a comma at the end
        items.pop()
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(items)
    if "" in items or len(items) != len(arguments):
        return _MISSING
    values = tuple(_parse(item, a) for item, a in zip(items, arguments, strict=True))
    return _MISSING if _MISSING in values else values


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "none"}


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list (a,b,c) whose items are each {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: " + ", ".join(_describe(a) for a in arguments)
    return _WORDS.get(annotation, f"a {annotation}, which cannot be set from text")
