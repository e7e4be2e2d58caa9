"""Tux Paint stamps: photographs and drawings, and their descriptions in 60+ languages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from geminid.corpus.emoji import fit, render
from geminid.corpus.recordings import stamp_texts

_AGAIN = "remove the stamps' folder and run `geminid data fetch` again"


@dataclass(frozen=True)
class StampMatch:
    """One stamp (path below the stamps' folder, no extension) that shows or names a core concept."""

    stamp: str
    concept: str
    shows: bool  # its picture shows the concept
    says: bool  # its description, and so its recordings, name the concept


def read_matches() -> list[StampMatch]:
    """The checked table of stamps and the concepts they show or name, sorted by concept."""
    text = resources.files("geminid.corpus").joinpath("stamp_concepts.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [
        StampMatch(stamp, concept, use in ("both", "picture"), use in ("both", "word")) for stamp, concept, use in rows
    ]


def stamps_root(package_root: Path) -> Path:
    """Folder of the stamps in the unpacked package.

    Raises ValueError if it is missing.
    """
    root = package_root / "usr" / "share" / "tuxpaint" / "stamps"
    if not root.is_dir():
        raise ValueError(f"{root} is missing: {_AGAIN}")
    return root


def picture(root: Path, stamp: str, size: int) -> np.ndarray | None:
    """One stamp -> uint8 [size, size, 3] on white; None if it comes without a picture.

    Raises UndrawableError for an SVG that resvg cannot draw; ValueError, one line with the file, for a broken PNG.
    """
    bitmap, drawing = (root / f"{stamp}{suffix}" for suffix in (".png", ".svg"))
    if bitmap.is_file():
        try:
            with Image.open(bitmap) as image:
                return fit(image, size)
        except (OSError, SyntaxError) as error:  # Pillow: UnidentifiedImageError is an OSError
            raise ValueError(f"picture {bitmap} is broken ({error}): {_AGAIN}") from None
    if drawing.is_file():
        return render(drawing.read_text(encoding="utf-8", errors="replace"), size)
    return None


def descriptions(root: Path, matches: list[StampMatch]) -> dict[str, dict[str, list[str]]]:
    """Language -> concept -> what its stamps' descriptions say, in the table's order, each once."""
    texts: dict[str, dict[str, list[str]]] = {}
    for match in matches:
        if not match.says:
            continue
        for language, text in stamp_texts(root / f"{match.stamp}.txt").items():
            known = texts.setdefault(language, {}).setdefault(match.concept, [])
            if text not in known:
                known.append(text)
    return {language: texts[language] for language in sorted(texts)}
