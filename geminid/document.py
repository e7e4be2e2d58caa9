"""Documents: what the corpus hands to the tokens. Plain values, no JAX.

A document is an ordered list of segments. A segment is one piece of text, one picture, one recording
or one timed frame, with a role: `see` (context, no loss) or `make` (target, loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["tag", "text", "image", "audio"]
Role = Literal["see", "make"]


@dataclass(frozen=True)
class Segment:
    """One piece of a document.

    `tag` names one special id (a language, a style, a time stamp). An image that is seen carries
    `pixels`; one that is made carries `codes`. Video is a run of `tag` (time) and `image` segments.
    """

    kind: Kind
    role: Role = "see"
    text: str = ""  # kind text: the words; kind tag: the special's name
    pixels: np.ndarray | None = None  # uint8 [H W 3], RGB
    codes: np.ndarray | None = None  # int [h w]
    mel: np.ndarray | None = None  # float [frames mels], log-mel


@dataclass(frozen=True)
class Document:
    """Segments in reading order, and where they come from."""

    segments: tuple[Segment, ...]
    task: str
    language: str = "und"
    source: str = ""


def tag(name: str) -> Segment:
    return Segment("tag", text=name)


def see_text(text: str) -> Segment:
    return Segment("text", text=text)


def make_text(text: str) -> Segment:
    return Segment("text", "make", text=text)


def see_image(pixels: np.ndarray) -> Segment:
    return Segment("image", pixels=pixels)


def make_image(codes: np.ndarray) -> Segment:
    return Segment("image", "make", codes=codes)


def see_audio(mel: np.ndarray) -> Segment:
    return Segment("audio", mel=mel)
