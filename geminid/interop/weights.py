"""Models in and out: any source -> a folder in Hugging Face's layout, and such a folder -> a module.

The folder is our own form too: config.json, model.safetensors (or shards with an index), tokenizer.model and whatever
else the source has for its tokenizer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from geminid.config import DecoderConfig
from geminid.corpus.fetch import default_cache
from geminid.interop.folder import (
    CONFIG,
    DTYPES,
    has_room,
    is_pickle,
    pickle_line,
    read_folder,
    read_object,
    write_folder,
)
from geminid.interop.gguf_file import GgufFile
from geminid.interop.known import KNOWN, fetch_known
from geminid.interop.picture_text import PICTURE_TEXT
from geminid.interop.runs import MODEL_TYPE, export_run, import_run
from geminid.interop.table import Row, fitted, import_module
from geminid.interop.text import TEXT, text_config
from geminid.interop.tower_configs import picture_text_config
from geminid.interop.towers import plain_names
from geminid.model.decoder import Decoder
from geminid.model.picture_text import PictureText
from geminid.model.towers import PictureTextConfig
from geminid.tokens.ids import pieces_of

TOKENIZER = "tokenizer.model"
OTHERS = (  # files that go along as they are
    TOKENIZER,
    "GEMMA_TERMS.html",
    "LICENSE",
    "NOTICE.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
OUTPUTS = {"lm_head.weight", "language_model.lm_head.weight"}  # some files hold the tied embedding twice


@dataclass(frozen=True)
class Source:
    """What was found: config.json's values, tensors under whatever names, other files by name."""

    values: dict[str, Any]
    tensors: Mapping[str, Any]
    others: dict[str, bytes]


@dataclass(frozen=True)
class Family:
    """A kind of model: what a config describes, the module, the table, the released files' names."""

    config: DecoderConfig | PictureTextConfig
    make: Callable[[], Any]
    table: tuple[Row, ...]
    embedding: str
    plain: Callable[[Mapping[str, Any]], dict[str, Any]]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Family:
        """By `model_type`; ValueError for what is not known or not ours."""
        kind = values.get("model_type")
        if kind == "gemma3_text":
            config, num_ids = text_config(values)
            embedding = "model.embed_tokens.weight"
            return cls(config, lambda: Decoder(config, num_ids, rngs=nnx.Rngs(0)), TEXT, embedding, dict)
        if kind == "gemma3":
            both = picture_text_config(values)
            embedding = "language_model.model.embed_tokens.weight"
            return cls(both, lambda: PictureText(both, rngs=nnx.Rngs(0)), PICTURE_TEXT, embedding, plain_names)
        raise ValueError(f"config.json: 'model_type' is {kind!r}; known: gemma3_text, gemma3 (with pictures)")

    def tensors(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The released names; a second copy of the embedding is left out. ValueError where they do not fit."""
        tensors = self.plain(found)
        for name in tensors.keys() & OUTPUTS:
            output, embedding = tensors.pop(name), tensors.get(self.embedding)
            if embedding is not None and not np.array_equal(np.asarray(output), np.asarray(embedding)):
                raise ValueError(f"{name} is not the embedding; this decoder's output is tied to it")
        fitted(self.make, self.table, tensors)
        return tensors


def open_source(path: Path) -> Source:
    """A folder in Hugging Face's layout, or a GGUF file. ValueError, one line, for anything else."""
    if path.is_dir():
        others = {name: (path / name).read_bytes() for name in OTHERS if (path / name).is_file()}
        return Source(read_object(path / CONFIG), read_folder(path), others)
    if not path.is_file():
        line = f"no such folder or file, and no known model ({', '.join(KNOWN)})"
        raise FileNotFoundError(errno.ENOENT, line, str(path))
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    if is_pickle(path):
        raise ValueError(pickle_line(f"{path} is a pickle or may hold one"))
    raise ValueError(f"{path} is neither a folder nor a .gguf file; give the folder that holds it and {CONFIG}")


def _open_gguf(path: Path) -> Source:
    file = GgufFile(path)
    others = {TOKENIZER: file.tokenizer()}
    notices = [path.with_name(name) for name in ("GEMMA_TERMS.html", "NOTICE.md")]
    others |= {notice.name: notice.read_bytes() for notice in notices if notice.is_file()}
    if file.chat_template is not None:
        others["chat_template.jinja"] = file.chat_template.encode()
    return Source(file.config, file.tensors, others)


def import_weights(source: str, out: Path, dtype: str | None = None) -> dict[str, Any]:
    """Writes the folder `out` from a folder, a GGUF file or a known model's name; the figures of what was written.

    dtype: what the weights are cast to; None: as they are (GGUF's become float32). Every tensor is checked before
    anything is written. ValueError, one line, for what is not whole or not ours, and where `out` is there already.
    """
    _check(out, dtype)
    path = fetch_known(source, default_cache()) if source in KNOWN and not Path(source).exists() else Path(source)
    if (path / CONFIG).is_file() and read_object(path / CONFIG).get("model_type") == MODEL_TYPE:
        if dtype is not None:
            raise ValueError(f"a run's parameters are float32; leave --dtype {dtype} out")
        return import_run(path, out)
    return _convert(path, out, dtype)


def export_weights(source: Path, out: Path, dtype: str | None = None) -> dict[str, Any]:
    """Writes the folder `out` from a finished run of ours, or from a folder that `import_weights` wrote; the figures.

    A run's folder holds our own parameters (`geminid.interop.runs`); any other is what transformers reads.
    """
    _check(out, dtype)
    return export_run(source, out, dtype) if (source / "recipe.json").is_file() else _convert(source, out, dtype)


def _check(out: Path, dtype: str | None) -> None:
    has_room(out)
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype '{dtype}'; known: {', '.join(DTYPES.values())}")


def _convert(path: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    opened = open_source(path)
    if path.is_dir() and TOKENIZER in opened.others:
        pieces_of(path / TOKENIZER)
    tensors = Family.of(opened.values).tensors(opened.tensors)
    values = opened.values if dtype is None else _cast(opened.values, dtype)
    write_folder(out, values, tensors, dtype, opened.others)
    return {
        "out": str(out),
        "model_type": values["model_type"],
        "num_params": sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values()),
        "num_tensors": len(tensors),
        "dtypes": sorted({dtype or str(tensor.dtype) for tensor in tensors.values()}),
        "num_bytes": sum(file.stat().st_size for file in out.iterdir()),
    }


def _cast(values: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with another dtype, wherever it says one."""
    parts = [name for name in ("text_config", "vision_config") if isinstance(values.get(name), dict)]
    said = [name for name in ("dtype", "torch_dtype") if name in values] or ["dtype"]
    return {**values, **{name: _cast(values[name], dtype) for name in parts}, **dict.fromkeys(said, dtype)}


def load_model(folder: Path, dtype: str | None = None) -> Decoder | PictureText:
    """The model in a folder that `import_weights` wrote, or any other in that layout; cast to `dtype` if given."""
    opened = open_source(folder)
    family = Family.of(opened.values)
    return import_module(family.make, family.table, family.tensors(opened.tensors), dtype)
