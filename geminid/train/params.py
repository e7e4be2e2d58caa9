"""The parameters of a finished stage, as one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Module = TypeVar("Module", bound=nnx.Module)


def params_of(module: nnx.Module) -> Any:
    """A module's parameters as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def named(params: Any) -> dict[str, Any]:
    """Nested parameters -> {"decoder/layers/...": array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in leaves}


def save_params(path: Path, params: Any) -> None:
    """Complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.asarray(leaf) for name, leaf in named(params).items()}, partial)
    os.replace(partial, path)


def load_params(path: Path, module: Module, prefix: str = "") -> Module:
    """`module` with the parameters in `path` (those whose names begin with `prefix`).

    ValueError when the file is not whole, and when names or shapes differ: it is of another recipe.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no parameters at {path}: that stage is not finished; run the training again")
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); delete it and run the training again"
        ) from error
    graph, state = nnx.split(module)
    pure = nnx.to_pure_dict(state)
    wanted = named(pure)
    found = {name: saved.get(prefix + name) for name in wanted}
    for name, leaf in found.items():
        if leaf is None or leaf.shape != wanted[name].shape:
            has = "nothing" if leaf is None else f"shape {leaf.shape}"
            need = f"the model needs {wanted[name].shape}"
            raise ValueError(f"{path} holds {has} for '{prefix + name}', {need}; it is of another recipe")
    extra = [name for name in saved if name.startswith(prefix) and name[len(prefix) :] not in wanted]
    if extra:
        raise ValueError(f"{path} also holds '{extra[0]}', which the model does not have; it is of another recipe")
    leaves = [jax.numpy.asarray(found[name]) for name in wanted]
    pure = jax.tree.unflatten(jax.tree.structure(pure), leaves)
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state)
