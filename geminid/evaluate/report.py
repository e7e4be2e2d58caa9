"""`report.html`: one page that needs no other file and no network, made from what a run left behind.

Read from the run's directory (only `metrics.json` is required; what is missing is said to be missing):
    metrics.json          one flat object, see `geminid.evaluate.measures`
    recipe.json           the recipe, nested
    timings.json          {stage: {"start_s", "wall_s", "steps"}}, seconds since the run's start
    curves/<stage>.jsonl  a logged step a line: {"step": i, "loss": x, ...further scalars}
    eval/examples.*       see `geminid.evaluate.examples`
    manifest.json         of the data: {"packages": [{"name", "registry", "version", "licence", "sha256", "num_bytes"}]}
The same files give the same page, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from geminid.evaluate import figures, measures
from geminid.evaluate.examples import load_examples

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")

LICENCE_NAMES = {
    "Apache-2.0": "Apache License 2.0",
    "MIT": "MIT License",
    "CC-BY-4.0": "Creative Commons Attribution 4.0",
    "CC-BY-SA-4.0": "Creative Commons Attribution-ShareAlike 4.0",
    "CC-BY-3.0": "Creative Commons Attribution 3.0",
    "CC-BY-SA-3.0": "Creative Commons Attribution-ShareAlike 3.0",
    "GPL-2.0-only": "GNU General Public License 2",
    "GPL-2.0-or-later": "GNU General Public License 2 or later",
    "GPL-3.0-or-later": "GNU General Public License 3 or later",
    "Unicode-3.0": "Unicode License 3.0",
}

# (start of a package's name, whom its licence asks to be named); the first that fits counts
CREDITS = (
    ("@iconify-json/noto", "Google (Noto Emoji)"),
    ("@iconify-json/twemoji", "Twitter and contributors (Twemoji)"),
    ("@iconify-json/openmoji", "OpenMoji, the open-source emoji and icon project"),
    ("@iconify-json/fluent-emoji", "Microsoft (Fluent Emoji)"),
    ("@iconify-json/emojione", "Emoji provided free by EmojiOne"),
    ("@lobehub/fluent-emoji-anim", "Microsoft (Fluent Emoji), packaged by LobeHub"),
    ("cldr-annotations", "Unicode, Inc. (Common Locale Data Repository)"),
    ("tuxpaint-stamps", "Bill Kendrick and the Tux Paint contributors"),
    ("asterisk-core-sounds-en", "Allison Smith, Digium"),
    ("asterisk-core-sounds-es", "Allison Smith, Digium"),
    ("asterisk-core-sounds-fr", "June Wallack, Digium"),
    ("asterisk-core-sounds-it", "Carlo Flora"),
    ("asterisk-core-sounds-ru", "Maxim Topal"),
)


@dataclass(frozen=True)
class Stage:
    """Time of one stage."""

    name: str
    start_s: float
    wall_s: float
    steps: int | None


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` (under a temporary name, then renamed) and returns its path.

    ValueError if `metrics.json` is missing or a file of the run is broken.
    """
    metrics = _metrics(run_dir / "metrics.json")
    recipe = _optional_object(run_dir / "recipe.json")
    stages = _stages(run_dir / "timings.json")
    page = _environment().from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run_dir.resolve().name,
        metrics=metrics,
        groups=measures.rows(metrics),
        recipe=recipe,
        recipe_parts=list(_recipe_parts(recipe or {})),
        stages=stages,
        curves=list(_curves(run_dir / "curves", [stage.name for stage in stages])),
        examples=load_examples(run_dir),
        packages=_packages(run_dir / "manifest.json"),
        sound=figures.sound_uri,
        scale=_scale,
        is_number=measures.is_number,
    )  # fmt: skip
    path = run_dir / NAME
    temporary = run_dir / f"{NAME}.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "picture": figures.picture_uri,
        "spectrogram": figures.spectrogram_uri,
        "written": measures.written,
        "plain": _plain,
        "licence": _licence,
        "credit": _credit,
    }
    return environment


def _licence(spdx: str) -> str:
    return LICENCE_NAMES.get(spdx, spdx)


def _credit(package: str) -> str:
    return next((credit for start, credit in CREDITS if package.startswith(start)), "")


def _scale(row: measures.Row) -> str:
    """The picture of a row whose value is a share; nothing for others."""
    if row.value is None or row.measure.unit != "%" or any(b.at_most is not None for b in row.measure.bars):
        return ""
    bar = next((b.at_least for b in row.measure.bars if b.at_least is not None), None)
    marks = [(f"{r.label}: {measures.written(r.value, '%')}", r.value) for r in row.references]
    return figures.scale_svg(row.value, marks, bar)


def _plain(value: Any) -> str:
    """A value of the recipe or the metrics as text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(_plain(item) for item in value) or "none"
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


def _metrics(path: Path) -> dict[str, Any]:
    metrics = _optional_object(path)
    if metrics is None:
        raise ValueError(f"{path} is missing: the run has not been evaluated; let it finish, then write the report")
    return metrics


def _optional_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and evaluate the run again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; delete it and evaluate the run again")
    return value


def _recipe_parts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(part, its fields with dotted names), plain top-level fields first."""
    plain = [(name, value) for name, value in recipe.items() if not isinstance(value, dict)]
    if plain:
        yield "run", plain
    for name, value in recipe.items():
        if isinstance(value, dict):
            yield name, list(_flat(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _stages(path: Path) -> list[Stage]:
    timings = _optional_object(path) or {}
    try:
        stages = [
            Stage(name, float(entry["start_s"]), float(entry["wall_s"]), entry.get("steps"))
            for name, entry in timings.items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: every stage needs start_s and wall_s in seconds ({error})") from error
    return sorted(stages, key=lambda stage: stage.start_s)


def _curves(directory: Path, order: list[str]) -> Iterator[tuple[str, str]]:
    """(stage, inline SVG) of every curve file that has points, in the order of the stages, others after them."""
    rank = {name: number for number, name in enumerate(order)}
    for path in sorted(directory.glob("*.jsonl"), key=lambda path: (rank.get(path.stem, len(rank)), path.stem)):
        points = _points(path)
        if any(len(point) > 1 for point in points):
            yield path.stem, figures.curves_svg(points, path.stem)


def _points(path: Path) -> list[dict[str, float]]:
    """Logged points in step order. A step logged again after a resume counts once, the later time."""
    lines = path.read_text(encoding="utf-8").splitlines()
    points: dict[float, dict[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            point = json.loads(line)
            step = point["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # a killed run may have left half a line at the end
                break
            raise ValueError(f"{path}, line {number} is not a logged step; delete the line") from None
        points[step] = {name: value for name, value in point.items() if figures.is_finite(value)}
    return [points[step] for step in sorted(points)]


def _packages(path: Path) -> list[dict[str, Any]]:
    packages = (_optional_object(path) or {}).get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(p, dict) and "name" in p for p in packages):
        raise ValueError(f"{path}: packages must be a list of objects with a name; build the data again")
    return packages
