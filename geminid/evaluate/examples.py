"""What a run saw, heard, answered and drew, kept for the report: `eval/examples.json` + `eval/examples.npz`.

The evaluation fills these records, `save_examples` writes them, the report shows them. The JSON holds every
plain value; where an array belongs it says {"array": name}, and the .npz holds the array of that name.

Letters: S picture side in pixels, F frames, T frames of log-mel, D mels, n samples, k pictures.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DIRECTORY = "eval"
NAME = "examples"


@dataclass(frozen=True)
class Answer:
    """What the model said and what would have been right, in one language."""

    language: str  # ISO 639 code of both
    text: str
    expected: str
    right: bool


@dataclass(frozen=True)
class NamedPicture:
    """A held-out picture and its names."""

    pixels: np.ndarray  # uint8 [S, S, 3]
    concept: str
    style: str
    answers: tuple[Answer, ...]  # one a language


@dataclass(frozen=True)
class Drawing:
    """A picture that the model drew."""

    pixels: np.ndarray  # uint8 [S, S, 3]
    prompt: str
    concept: str
    style: str
    verdict: str  # the concept that the judge sees in it
    real: np.ndarray | None = None  # uint8 [S, S, 3]: the real picture of this concept and style

    @property
    def right(self) -> bool:
        return self.verdict == self.concept


@dataclass(frozen=True)
class Reconstruction:
    """A held-out picture and what is left of it after the codec."""

    original: np.ndarray  # uint8 [S, S, 3]
    decoded: np.ndarray  # uint8 [S, S, 3]
    concept: str
    style: str
    psnr_db: float


@dataclass(frozen=True)
class Recording:
    """A real recording and its name."""

    log_mel: np.ndarray  # float32 [T, D]
    hop_s: float  # seconds from one frame to the next
    spoken: str  # the words that are heard
    kind: str  # "name" | "digit"
    split: str  # "word" | "normal" | "speaker"
    answer: Answer
    samples: np.ndarray | None = None  # int16 [n], mono
    sample_rate: int = 16_000  # Hz


@dataclass(frozen=True)
class Animation:
    """An animation and its name."""

    frames: np.ndarray  # uint8 [F, S, S, 3]
    times_s: tuple[float, ...]
    concept: str
    answer: Answer


@dataclass(frozen=True)
class OrderQuestion:
    """Pictures one after another and a question about their order."""

    pictures: np.ndarray  # uint8 [k, S, S, 3]
    question: str
    answer: Answer


@dataclass(frozen=True)
class FewShot:
    """Pictures, each followed by a made-up word, and a last picture that the model names."""

    pictures: np.ndarray  # uint8 [k, S, S, 3], the examples
    words: tuple[str, ...]  # k
    query: np.ndarray  # uint8 [S, S, 3]
    answer: Answer


@dataclass(frozen=True)
class Examples:
    """Everything the report can show; what is empty is reported as not measured."""

    pictures: tuple[NamedPicture, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    reconstructions: tuple[Reconstruction, ...] = ()
    recordings: tuple[Recording, ...] = ()
    animations: tuple[Animation, ...] = ()
    orders: tuple[OrderQuestion, ...] = ()
    few_shots: tuple[FewShot, ...] = ()


def save_examples(run_dir: Path, examples: Examples) -> None:
    """Writes `eval/examples.npz`, then `eval/examples.json`, in `run_dir`: each complete or not at all."""
    directory = run_dir / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    plain = json.dumps(_encode(examples, "", arrays), ensure_ascii=False, indent=1)
    with open(directory / f"{NAME}.npz.tmp", "wb") as file:
        np.savez_compressed(file, **arrays)  # pyrefly: ignore[bad-argument-type]
    os.replace(directory / f"{NAME}.npz.tmp", directory / f"{NAME}.npz")
    (directory / f"{NAME}.json.tmp").write_text(plain, encoding="utf-8")
    os.replace(directory / f"{NAME}.json.tmp", directory / f"{NAME}.json")


def load_examples(run_dir: Path) -> Examples:
    """What `save_examples` wrote in `run_dir`; no examples if it never did; ValueError if they are broken."""
    path = run_dir / DIRECTORY / f"{NAME}.json"
    if not path.is_file():
        return Examples()
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        with open(path.with_suffix(".npz"), "rb") as file, np.load(file) as arrays:
            return _decode(Examples, plain, arrays)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} and its .npz are broken ({error}); run the evaluation again") from error


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return {key: _encode(getattr(value, key), f"{name}/{key}".lstrip("/"), arrays) for key in fields}
    if isinstance(value, tuple):
        return [_encode(item, f"{name}/{number}", arrays) for number, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    return value.item() if isinstance(value, np.generic) else value


def _decode(kind: Any, plain: Any, arrays: Any) -> Any:
    if isinstance(kind, types.UnionType):  # "np.ndarray | None"
        return None if plain is None else _decode(kind.__args__[0], plain, arrays)
    if kind is np.ndarray:
        return arrays[plain["array"]]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{key: _decode(hints[key], value, arrays) for key, value in plain.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(_decode(kind.__args__[0], item, arrays) for item in plain)
    return plain
