"""The demo corpus' captions as plain text, in many languages; some concepts are held out of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LANGUAGES = ("en", "fr", "es", "de", "ru", "el", "ar", "hi", "ja", "zh")
HELD_OUT = 8  # one concept in so many


@dataclass(frozen=True)
class Caption:
    """What is called how in a language, and whether the concept is held out."""

    concept: str
    language: str
    text: str
    held_out: bool


def is_held_out(concept: str) -> bool:
    """The same on every machine and for every language."""
    return hashlib.sha256(f"tune {concept}".encode()).digest()[0] % HELD_OUT == 0


def captions(texts: Mapping[str, Any], languages: Sequence[str] = LANGUAGES) -> list[Caption]:
    """Captions of the data set's `texts`: the name of every concept in every language, and how it is described there.

    ValueError where a language has none.
    """
    names, descriptions = texts["names"], texts["descriptions"]
    missing = [language for language in languages if language not in names]
    if missing:
        raise ValueError(f"the data set has no names in {', '.join(missing)}; known: {', '.join(sorted(names))}")
    made = []
    for language in languages:
        for concept, name in sorted(names[language].items()):
            described = descriptions.get(language, {}).get(concept, [])
            more = "".join(f" {text.rstrip('.')}." for text in described[:1] if text != name)
            made.append(Caption(concept, language, f"{concept} [{language}]: {name}.{more}", is_held_out(concept)))
    return made
