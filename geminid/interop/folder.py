"""Folders of weights in Hugging Face's layout: config.json beside safetensors, in one file or in several with an index.

Only safetensors are read. A pickle can run any code when it is opened, so none is.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from geminid.interop.table import listed

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = frozenset((".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"))
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SHARD_BYTES = 4_000_000_000  # of one written file at most, unless one tensor is larger
MOST_JSON_BYTES = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """One array of a file, read when it is wanted (`np.asarray`)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.load()
        return array if dtype is None else array.astype(dtype)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. ValueError, one line, where there is none."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    if (size := path.stat().st_size) > MOST_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {MOST_JSON_BYTES:,} are read as JSON")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not JSON ({str(error)[:80]}); it is damaged, fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive that may hold some, by its ending or its first bytes."""
    with path.open("rb") as file:
        begin = file.read(4)
    return path.suffix.lower() in PICKLES or begin == b"PK\x03\x04" or (begin[:1] == b"\x80" and begin[1:2] <= b"\x05")


def pickle_line(what: str) -> str:
    return f"{what}, which can run any code when it is read; give safetensors or GGUF instead"


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. ValueError, one line, where it is not whole or not floating point."""
    try:
        file = safe_open(path, "numpy")
        shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        if is_pickle(path):
            raise ValueError(pickle_line(f"{path} is a pickle")) from None
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None
    kinds = {name: part.get_dtype() for name, part in shapes.items()}
    others = [f"{name} {kind}" for name, kind in kinds.items() if kind not in DTYPES]
    if others:
        raise ValueError(f"{path} holds tensors that are not {', '.join(DTYPES)}: {listed(others)}")
    return {
        name: Tensor(
            tuple(part.get_shape()), jnp.dtype(DTYPES[kinds[name]]), lambda name=name, file=file: file.get_tensor(name)
        )
        for name, part in shapes.items()
    }


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from its one file or from those that its index names.

    ValueError lists what the index names and is not there, what is there and is not named, and what is there twice.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder} holds both {WEIGHTS} and {INDEX}; remove the one that is not meant")
    if single.is_file():
        return read_file(single)
    if not index.is_file():
        raise ValueError(_no_weights(folder))
    return _read_shards(folder, read_object(index).get("weight_map"))


def _no_weights(folder: Path) -> str:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if pickles:
        return pickle_line(f"{folder} holds no weights but a pickle ({listed(pickles)})")
    return f"{folder} holds neither {WEIGHTS} nor {INDEX}; there are: {listed(names) or 'no files'}"


def _read_shards(folder: Path, places: Any) -> dict[str, Tensor]:
    index = folder / INDEX
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no 'weight_map' from tensors to files; fetch it again")
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or Path(name).suffix != ".safetensors"]
    if outside:
        raise ValueError(f"{index} names what are not safetensors files beside it: {listed(outside)}")
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        raise ValueError(f"{index} names files that are not there: {listed(lacking)}; fetch them")
    found: dict[str, Tensor] = {}
    for file in files:
        tensors = read_file(folder / file)
        if twice := found.keys() & tensors.keys():
            raise ValueError(f"{folder / file} holds tensors that another file holds too: {listed(twice)}")
        wrong = {name for name, place in places.items() if place == file} ^ tensors.keys()
        if wrong:
            raise ValueError(f"{index} and {file} do not agree about: {listed(wrong)}")
        found |= tensors
    return found


def has_room(folder: Path) -> None:
    """ValueError where a new folder cannot be: something is there, or a file stands on the way to it."""
    if folder.exists():
        raise ValueError(f"{folder} is there already; give another --out or remove it")
    above = next(each for each in folder.absolute().parents if each.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file; give another --out", str(above))
    if not os.access(above, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to; give another --out", str(above))


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    dtype: str | None = None,
    others: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a new folder, complete or not at all: config.json, tensors (cast to `dtype` if given), other files.

    tensors: arrays, or what has a shape, a dtype and becomes an array. ValueError where there is such a folder.
    """
    has_room(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        _write_json(partial / CONFIG, config)
        _write_weights(partial, tensors, dtype, shard_bytes)
        for name, content in (others or {}).items():
            (partial / name).write_bytes(content)
        os.replace(partial, folder)
    except BaseException:
        for path in partial.iterdir():
            path.unlink()
        partial.rmdir()
        raise


def _write_weights(folder: Path, tensors: Mapping[str, Any], dtype: str | None, shard_bytes: int) -> None:
    shards = list(_shards(tensors, dtype, shard_bytes))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [WEIGHTS]
    for file, shard in zip(names, shards, strict=True):
        arrays = {name: np.asarray(tensors[name]).astype(dtype or tensors[name].dtype) for name in shard}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / file, {"format": "pt"}
        )
        (folder / file).chmod(0o644)  # the library makes files that their owner alone may read
    if len(shards) > 1:
        total = sum(_num_bytes(tensors[name], dtype) for name in tensors)
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _shards(tensors: Mapping[str, Any], dtype: str | None, shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each file, in their order."""
    shard: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        num_bytes = _num_bytes(tensor, dtype)
        if shard and size + num_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += num_bytes
    yield shard


def _num_bytes(tensor: Any, dtype: str | None) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * jnp.dtype(dtype or tensor.dtype).itemsize


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
