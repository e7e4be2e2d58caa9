"""Letters of what is said, scripts side by side: what the audio encoder learns to spell."""

from __future__ import annotations

import unicodedata

import numpy as np

ALPHABET = (
    "abcdefghijklmnopqrstuvwxyz"
    "абвгдежзийклмнопрстуфхцчшщъыьэюяіў"
    "αβγδεζηθικλμνξοπρστυφχψω"
)  # fmt: skip
NUM_LETTERS = len(ALPHABET)
LEVELS = 4  # a word is cut into 1, 2, 3 and 4 parts
PARTS = tuple((k / level, (k + 1) / level) for level in range(1, LEVELS + 1) for k in range(level))  # begin, end
_IDS = {letter: k for k, letter in enumerate(ALPHABET)}
_WHOLE = {"й", "ў"}  # letters of their own, not a letter and an accent


def letter_ids(text: str) -> list[int]:
    """Letters of a text in order, without accents, spaces and signs."""
    found = []
    for letter in unicodedata.normalize("NFC", text.lower()):
        plain = letter if letter in _WHOLE else unicodedata.normalize("NFD", letter)[0]
        plain = "σ" if plain == "ς" else plain
        if plain in _IDS:
            found.append(_IDS[plain])
    return found


def letters_by_part(text: str) -> np.ndarray:
    """Which letters occur in which part of a text, bool [parts letters].

    A letter belongs to a part that holds at least half of it, letters taken as equally long (PHOC: Almazan et al.
    2014, section 3.1).
    """
    letters = letter_ids(text)
    out = np.zeros((len(PARTS), NUM_LETTERS), bool)
    for i, letter in enumerate(letters):
        begin, end = i / len(letters), (i + 1) / len(letters)
        for part, (first, last) in enumerate(PARTS):
            if min(end, last) - max(begin, first) >= 0.5 * (end - begin) - 1e-9:
                out[part, letter] = True
    return out
