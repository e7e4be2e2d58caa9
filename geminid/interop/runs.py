"""Our own finished runs in and out: one folder of config.json, model.safetensors, tokenizer.model and names.json.

Parameters keep their own names, under `model/` and `codec/`: no other program has such a model. Read back, the folder
is a run directory again, which answers (`geminid name`, `geminid draw`) but has no checkpoints, curves or measures.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from geminid.config import Recipe, recipe_from_json
from geminid.interop.folder import CONFIG, read_folder, read_object, write_folder
from geminid.interop.table import Row, fitted
from geminid.interop.towers import part_of
from geminid.tokens.ids import IdSpace, special_names
from geminid.train import joint, pretrain
from geminid.train.params import load_params, named, params_of, save_params
from geminid.train.rundir import RunDir, read_json

MODEL_TYPE = "geminid"


def _parts(recipe: Recipe, num_ids: int) -> dict[str, tuple[str, Callable[[], nnx.Module]]]:
    """Prefix -> stage whose parameters stand under it, and its module."""
    return {
        "model/": ("joint", lambda: joint.make_model(recipe, num_ids)),
        "codec/": ("codec", lambda: pretrain.make_codec(recipe)),
    }


def export_run(run_dir: Path, out: Path, dtype: str | None = None) -> dict[str, Any]:
    """Writes the folder of a finished run. FileNotFoundError where it is none, ValueError where it is broken."""
    run = RunDir(run_dir)
    recipe = run.recipe()
    space = IdSpace.load(recipe, run.tokenizer)
    tensors = {
        prefix + name: np.asarray(leaf)
        for prefix, (stage, make) in _parts(recipe, space.size).items()
        for name, leaf in named(params_of(load_params(run.params(stage), nnx.eval_shape(make)))).items()
    }
    values = {
        "model_type": MODEL_TYPE,
        "recipe": dataclasses.asdict(recipe),
        "specials": list(special_names(recipe)),
        "num_ids": space.size,
        "dtype": dtype or "float32",
    }
    read_json(run.names)  # damaged, it is not handed on
    files = [file for file in (run.tokenizer, run.names) if file.is_file()]
    write_folder(out, values, tensors, dtype, {file.name: file.read_bytes() for file in files})
    return {"out": str(out), "model_type": MODEL_TYPE, "num_params": sum(tensor.size for tensor in tensors.values())}


def import_run(folder: Path, out: Path) -> dict[str, Any]:
    """Writes a run directory from what `export_run` wrote, complete or not at all.

    ValueError, one line, where names or shapes differ, or where `out` is there.
    """
    values = read_object(folder / CONFIG)
    try:
        recipe = recipe_from_json(values["recipe"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is broken or of another version ({error}); export it again") from None
    if out.exists():
        raise ValueError(f"{out} is there already; give another --out or remove it")
    partial = RunDir(out.with_name(f".{out.name}.{os.getpid()}.partial"))
    try:
        partial.claim(recipe)
        for file in (partial.tokenizer, partial.names):
            if (folder / file.name).is_file():
                file.write_bytes((folder / file.name).read_bytes())
        num_params = _write_stages(recipe, partial, folder)
        os.replace(partial.path, out)
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
    return {"out": str(out), "model_type": MODEL_TYPE, "num_params": num_params}


def _write_stages(recipe: Recipe, run: RunDir, folder: Path) -> int:
    tensors = read_folder(folder)
    parts = _parts(recipe, IdSpace.load(recipe, run.tokenizer).size)
    whose = {name: prefix for name in tensors for prefix in parts if name.startswith(prefix)}
    if unknown := tensors.keys() - whose.keys():
        raise ValueError(f"{folder} holds tensors that belong to no part of a run: {sorted(unknown)[0]}")
    for prefix, (stage, make) in parts.items():
        part = part_of(tensors, prefix)
        names = named(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param)))
        fitted(make, [Row(name, name) for name in names], part)
        # float32 again where the export was cast: the model computes in what its parameters are
        save_params(run.params(stage), {name: np.asarray(part[name]).astype(np.float32) for name in names})
    return sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values())
