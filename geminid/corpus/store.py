"""The built data set on disk: ArrayRecord files of raw arrays, an index of their metadata, and the reader of both.

Axis letters: S picture side in pixels, F frames, n samples at 16 kHz.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

INDEX = "index.json"
TEXTS = "texts.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PictureMeta:
    """One picture of a concept in one style."""

    concept: str
    core: bool
    style: str
    split: str  # "train" | "style" (held-out style) | "pair" (held-out (concept, style))


@dataclass(frozen=True)
class ClipMeta:
    """One sound: a spoken name of a core concept, a spoken digit, or what the thing itself sounds like."""

    kind: str  # "name" | "digit" | "sound"
    concept: str | None
    digit: int | None
    language: str
    text: str
    voice: str
    real: bool
    split: str  # "train" | "word" | "normal" | "speaker"
    num_samples: int


@dataclass(frozen=True)
class AnimationMeta:
    """One animation of a core concept; `times_s` are the start times of its kept frames."""

    concept: str
    split: str  # "train" | "unseen"
    times_s: tuple[float, ...]


class RecordWriter:
    """Writes one ArrayRecord file of raw arrays; one record per group makes every record randomly readable."""

    def __init__(self, path: Path):
        self._writer = ArrayRecordWriter(str(path), "group_size:1")

    def write(self, array: np.ndarray) -> None:
        """Appends the array's bytes (C order); shape and dtype are the index's business."""
        self._writer.write(np.ascontiguousarray(array).tobytes())

    def close(self) -> None:
        self._writer.close()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name, then renames: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    os.replace(temporary, path)


def rows_of(metas: Iterable[Any]) -> dict[str, list[Any]]:
    """Metadata records -> one list per field: about a third of the size of a list of objects."""
    metas = list(metas)
    if not metas:
        return {}
    return {f.name: [getattr(meta, f.name) for meta in metas] for f in dataclasses.fields(metas[0])}


def _metas(kind: type, rows: dict[str, list[Any]]) -> list[Any]:
    return (
        [kind(*values) for values in zip(*(rows[f.name] for f in dataclasses.fields(kind)), strict=True)]
        if rows
        else []
    )


class Dataset:
    """A built data set. Reading is thread-safe; metadata is in memory, arrays are read on demand.

    Attributes:
        path: the data set's directory.
        concepts: core concepts, sorted.
        extra_concepts: other concepts that have pictures, sorted.
        names: language -> core concept -> name.
        phones: language -> text of a clip -> how it is pronounced (IPA); no entry for sounds of things.
        pictures, clips, animations: metadata of every record, in record order.
        licences: package name -> SPDX licence.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        index = _read_json(self.path / INDEX)
        self._index = index
        self.size: int = index["picture_size"]
        self.num_frames: int = index["frames"]
        self.concepts: tuple[str, ...] = tuple(index["concepts"])
        self.extra_concepts: tuple[str, ...] = tuple(index["extra_concepts"])
        self.names: dict[str, dict[str, str]] = index["names"]
        self.phones: dict[str, dict[str, str]] = index["phones"]
        self.pictures: list[PictureMeta] = _metas(PictureMeta, index["pictures"])
        self.clips: list[ClipMeta] = _metas(ClipMeta, index["clips"])
        self.animations: list[AnimationMeta] = [
            dataclasses.replace(meta, times_s=tuple(meta.times_s))
            for meta in _metas(AnimationMeta, index["animations"])
        ]
        self._pictures = self._source("pictures", len(self.pictures))
        self._clips = self._source("clips", len(self.clips))
        self._animations = self._source("animations", len(self.animations))

    def _source(self, name: str, num_records: int) -> ArrayRecordDataSource | None:
        if num_records == 0:
            return None
        path = self.path / f"{name}.array_record"
        if not path.is_file():
            raise ValueError(f"{path} is missing: remove {self.path} and run `geminid data build` again")
        return ArrayRecordDataSource([str(path)])

    @property
    def report(self) -> dict[str, Any]:
        """What the build left out, by reason, and counts."""
        return self._index["report"]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The data set's config and packages: name, registry, version, licence, SHA-256, bytes."""
        return _read_json(self.path / MANIFEST)

    @cached_property
    def _texts(self) -> dict[str, Any]:
        return _read_json(self.path / TEXTS)

    @property
    def all_names(self) -> dict[str, dict[str, str]]:
        """Language -> concept -> name, in every language that CLDR has; extra concepts too."""
        return self._texts["names"]

    @property
    def keywords(self) -> dict[str, dict[str, list[str]]]:
        """Language -> concept -> keywords, in the config's languages."""
        return self._texts["keywords"]

    @property
    def descriptions(self) -> dict[str, dict[str, list[str]]]:
        """Language -> core concept -> whole phrases that describe its stamps ("A duck")."""
        return self._texts["descriptions"]

    def picture(self, i: int) -> np.ndarray:
        """Picture `i` -> uint8 [S, S, 3], RGB on white."""
        assert self._pictures is not None
        return _array(self._pictures, i, np.uint8).reshape(self.size, self.size, 3)

    def clip(self, i: int) -> np.ndarray:
        """Clip `i` -> int16 [n], mono, 16 kHz."""
        assert self._clips is not None
        return _array(self._clips, i, np.int16)

    def animation(self, i: int) -> np.ndarray:
        """Animation `i` -> uint8 [F, S, S, 3], RGB on white."""
        assert self._animations is not None
        return _array(self._animations, i, np.uint8).reshape(self.num_frames, self.size, self.size, 3)


def _array(source: ArrayRecordDataSource, i: int, dtype: type) -> np.ndarray:
    return np.frombuffer(source[i], dtype)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is not a built data set ({path.name} is missing): run `geminid data build`"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is broken (line {error.lineno}): remove {path.parent} and run `geminid data build` again"
        ) from None


def open_dataset(path: Path) -> Dataset:
    """Opens the data set that `geminid.corpus.build.build` made.

    Raises ValueError if `path` is not one or is damaged.
    """
    return Dataset(path)
