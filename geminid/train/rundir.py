"""Where a run keeps what it makes, and whose run it is.

recipe.json, tokenizer.model, names.json, stages/NAME/{checkpoints/, params.safetensors, cursor.json},
curves/NAME.jsonl, codes.npy, timings.json, lock; the evaluation adds judge.npz, eval/, metrics.json and
manifest.json, the demo clock.json and report.html, `plan ladder` ladder/.
"""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geminid.config import Recipe, recipe_from_json


def write_json(path: Path, value: Any) -> None:
    """Complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} when there is none. ValueError names a file that is damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path} is damaged ({error}); remove it and run again what makes it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; remove it and run again what makes it")
    return value


@dataclass(frozen=True)
class RunDir:
    """Paths of a run."""

    path: Path

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def names(self) -> Path:
        """{language: {core concept: name}}: what the model can be asked about without the data set."""
        return self.path / "names.json"

    @property
    def codes(self) -> Path:
        """int32 [pictures h w]: every picture of the data set as the codec writes it."""
        return self.path / "codes.npy"

    @property
    def timings(self) -> Path:
        return self.path / "timings.json"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    def params(self, stage: str) -> Path:
        return self.stage(stage) / "params.safetensors"

    def cursor(self, stage: str) -> Path:
        """Where a finished stage stopped reading its data."""
        return self.stage(stage) / "cursor.json"

    def curve(self, stage: str) -> Path:
        return self.path / "curves" / f"{stage}.jsonl"

    def claim(self, recipe: Recipe) -> None:
        """Writes the recipe into a new run; ValueError when the directory holds another recipe's run."""
        file = self.path / "recipe.json"
        if file.is_file():
            self.check(recipe)
            return
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run; give another --run-dir")
        write_json(file, dataclasses.asdict(recipe))

    def check(self, recipe: Recipe) -> None:
        """ValueError when the directory holds another recipe's run, FileNotFoundError when it holds none."""
        other = self.recipe()
        if other != recipe:
            raise ValueError(
                f"{self.path} holds a run of recipe '{other.name}' ({other.fingerprint()}), not of"
                f" '{recipe.name}' ({recipe.fingerprint()}); give another --run-dir or remove it"
            )

    def recipe(self) -> Recipe:
        """The recipe that this run was started with."""
        file = self.path / "recipe.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no run (no recipe.json); `make demo` makes one in runs/demo")
        try:
            return recipe_from_json(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is broken or of another version ({error}); train again") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines; none where there is no file. A line that was not written to its end is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
