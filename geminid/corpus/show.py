"""What a built data set holds: counts for `geminid data show`, and a contact sheet to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from geminid.corpus.store import Dataset

CONTACT_SHEET = "contact_sheet.png"
_SAMPLE_RATE = 16_000  # Hz


def show(dataset: Dataset) -> dict[str, Any]:
    """Counts by split, style and language, hours of sound, and the packages' licences, ready for JSON."""
    clips = dataset.clips
    spoken = [clip for clip in clips if clip.real and clip.kind == "name"]
    sheet = dataset.path / CONTACT_SHEET
    return {
        "path": str(dataset.path),
        "contact_sheet": str(sheet) if sheet.is_file() else None,
        "num_concepts": len(dataset.concepts),
        "num_extra_concepts": len(dataset.extra_concepts),
        "num_pictures": len(dataset.pictures),
        "num_clips": len(clips),
        "num_animations": len(dataset.animations),
        "hours_real": _hours(clip.num_samples for clip in clips if clip.real),
        "hours_synthetic": _hours(clip.num_samples for clip in clips if not clip.real),
        "pictures_by_style": _count(picture.style for picture in dataset.pictures),
        "core_pictures_by_split": _count(picture.split for picture in dataset.pictures if picture.core),
        "extra_pictures_by_split": _count(picture.split for picture in dataset.pictures if not picture.core),
        "clips_by_kind": _count(_kind(clip.kind, clip.real, clip.split) for clip in clips),
        "real_names_by_language": _count(clip.language for clip in spoken),
        "animations_by_split": _count(animation.split for animation in dataset.animations),
        "languages": sorted(dataset.names),
        "num_text_languages": len(dataset.all_names),
        "left_out": dataset.report["skipped"],
        "licences": {package["name"]: package["licence"] for package in dataset.manifest["packages"]},
    }


def _kind(kind: str, real: bool, split: str) -> str:
    return f"{'real' if real else 'synthetic'} {kind}, {split}"


def _hours(num_samples: Iterable[int]) -> float:
    return round(sum(num_samples) / _SAMPLE_RATE / 3600, 3)


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def write_contact_sheet(dataset: Dataset, path: Path, concepts_per_style: int = 12) -> Path:
    """Writes a PNG, one row of the same core concepts for every style, and returns `path`."""
    size = dataset.size
    step = max(1, len(dataset.concepts) // concepts_per_style)
    columns = {concept: i for i, concept in enumerate(dataset.concepts[::step][:concepts_per_style])}
    styles = sorted({picture.style for picture in dataset.pictures})
    sheet = Image.new("RGB", (size * len(columns), size * len(styles)), "white")
    filled: set[tuple[int, int]] = set()
    for i, picture in enumerate(dataset.pictures):
        cell = (columns.get(picture.concept, -1), styles.index(picture.style))
        if cell[0] >= 0 and cell not in filled:
            sheet.paste(Image.fromarray(dataset.picture(i)), (cell[0] * size, cell[1] * size))
            filled.add(cell)
    sheet.save(path, "PNG")
    return path
