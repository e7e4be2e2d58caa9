"""Who may be heard and seen in training: splits drawn by SHA-256, the same on every machine."""

from __future__ import annotations

import hashlib


def fraction(seed: int, *strings: str) -> float:
    """A number in [0, 1) that depends on the seed and the strings alone."""
    digest = hashlib.sha256("\x1f".join((str(seed), *strings)).encode()).hexdigest()
    return int(digest[:13], 16) / 16**13  # 52 bits: exact in a float


def is_word_concept(concept: str, seed: int) -> bool:
    """Whether all real recordings of a concept are held out: a third of the concepts, in every language."""
    return fraction(seed, "word", concept) < 1 / 3


def clip_name_split(concept: str, key: str, seed: int) -> str:
    """Split of a real recording of a concept's name; `key` identifies the recording.

    "word" (a third of the concepts, held out whole), "normal" (10% of the other recordings) or "train".
    """
    if is_word_concept(concept, seed):
        return "word"
    return "normal" if fraction(seed, "normal", concept, key) < 0.1 else "train"


# The styles that a held-out (concept, style) pair rotates over. Never the Fluent sets: the two
# and the animations are the same drawings.
PAIR_STYLES = ("noto", "noto-v1", "openmoji", "emojione", "emojione-v1")
_MIN_TRAIN_STYLES = 4


def held_out_pair(concept: str, train_styles: set[str], seed: int) -> str | None:
    """The style in which a core concept is never shown in training; None if it has fewer than 4 to learn from.

    `train_styles` are the emoji styles that the concept has beside the held-out one.
    """
    eligible = [style for style in PAIR_STYLES if style in train_styles]
    if len(train_styles) < _MIN_TRAIN_STYLES or not eligible:
        return None
    return min(eligible, key=lambda style: fraction(seed, "pair", concept, style))


def animation_split(concept: str, seed: int) -> str:
    """ "unseen" for two thirds of the concepts, which training shows as still pictures only; else "train"."""
    return "unseen" if fraction(seed, "animation", concept) < 2 / 3 else "train"
