"""Unicode CLDR: names and keywords of emoji in 100+ languages.

A concept's id is its English short name in lower case ("red apple").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_SKIN_TONES = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
_BRACKETS = re.compile(r"\s*\([^)]*\)")  # "Polizist(in)", "OK button (blood type)": not part of what one says
_EMOJI_STYLE = "\ufe0f"  # variation selector 16: asks for the coloured form
# The two packages and the folder and key that their files use.
_PARTS = (("cldr-annotations-full", "annotations"), ("cldr-annotations-derived-full", "annotationsDerived"))


@dataclass(frozen=True)
class Annotation:
    """Name and keywords of one emoji in one language; either may be missing."""

    name: str | None
    keywords: tuple[str, ...]


def code_points(emoji: str) -> str:
    """Emoji -> "1f468-200d-1f33e": hexadecimal, without variation selectors and leading zeros."""
    return "-".join(f"{ord(character):x}" for character in emoji if character != _EMOJI_STYLE)


def normal_code_points(written: str) -> str:
    """ "0023-FE0F-20e3" -> "23-20e3": the spelling of `code_points`, from a file name or a table's key."""
    parts = (part.lstrip("0").lower() for part in written.split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def languages(roots: dict[str, Path]) -> list[str]:
    """Languages that the packages hold, sorted; regional variants ("fr-CA") are left out."""
    folder = roots["cldr-annotations-full"] / "annotations"
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and "-" not in p.name)


def annotations(roots: dict[str, Path], language: str) -> dict[str, Annotation]:
    """Code points -> annotation, of one language, without skin tones.

    `roots` maps the two packages' names to the folders they are unpacked in.
    Raises ValueError if CLDR lacks the language.
    """
    merged: dict[str, Annotation] = {}
    for package, key in _PARTS:
        path = roots[package] / key / language / "annotations.json"
        if not path.is_file():
            if key == "annotations":
                raise ValueError(f"CLDR has no names in language {language!r}; it has {', '.join(languages(roots))}")
            continue
        table = json.loads(path.read_text(encoding="utf-8"))[key].get("annotations", {})  # absent: nothing of its own
        for emoji, entry in table.items():
            if len(emoji) > 1 and _SKIN_TONES & set(emoji):
                continue
            name = _BRACKETS.sub("", entry["tts"][0]).strip() if entry.get("tts") else None
            merged[code_points(emoji)] = Annotation(name, tuple(entry.get("default", ())))
    return merged


def concept_ids(english: dict[str, Annotation]) -> dict[str, str]:
    """Code points -> concept id, from the English annotations; the first emoji of a name keeps it."""
    seen: set[str] = set()
    ids: dict[str, str] = {}
    for points, annotation in english.items():
        if annotation.name and annotation.name.lower() not in seen:
            ids[points] = annotation.name.lower()
            seen.add(ids[points])
    return ids


def spell(names: dict[str, str]) -> dict[str, str]:
    """Lower-cases one language's names, unless it is one that capitalises its nouns (most names do)."""
    capitalised = sum(name[:1].isupper() for name in names.values())
    if capitalised > len(names) / 2:
        return dict(names)
    return {concept: name.lower() for concept, name in names.items()}
