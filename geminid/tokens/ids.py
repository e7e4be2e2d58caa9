"""The one id space: `special | text pieces | image codes`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from geminid.config import Recipe

NUM_SIZES = 32  # an image that is written has 1 to 32 codes a side
NUM_TIMES = 64  # time stamps, quarter seconds from 0 to 15.75 s
TIME_STEP_S = 0.25

FIXED_SPECIALS = ("pad", "bos", "eos", "boi", "eoi", "boa", "soft_image", "soft_audio", "draw", "digit", "word")


def special_names(recipe: Recipe) -> tuple[str, ...]:
    """Every special of a recipe, in id order."""
    return (
        *FIXED_SPECIALS,
        *(f"lang:{language}" for language in recipe.data.languages),
        *(f"style:{style}" for style in (*recipe.data.styles, "photo")),
        *(f"time:{i}" for i in range(NUM_TIMES)),
        *(f"size:{i + 1}" for i in range(NUM_SIZES)),
    )


def num_ids(recipe: Recipe) -> int:
    """Size of the id space, whose text pieces need not be trained yet."""
    return len(special_names(recipe)) + recipe.text.vocab_size + recipe.codec.num_codes


def time_tag(seconds: float) -> str:
    """The time stamp of a frame, rounded to quarter seconds; later than the last is the last."""
    return f"time:{min(int(seconds / TIME_STEP_S + 0.5), NUM_TIMES - 1)}"


def next_places(height: int, width: int) -> np.ndarray:
    """Where the code that follows stands, for each id of a written image, int32 [height * width + 4].

    1 + row * NUM_SIZES + column from the width's marker to the last code but one; 0, nowhere, elsewhere.
    """
    places = np.zeros(height * width + 4, np.int32)
    places[2:-2] = 1 + (np.arange(height)[:, None] * NUM_SIZES + np.arange(width)).reshape(-1)
    return places


def pieces_of(model_file: Path) -> sentencepiece.SentencePieceProcessor:
    """ValueError, one line, where the file is no SentencePiece model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    except RuntimeError as error:
        told = str(error).split("] ")[-1]
        raise ValueError(
            f"{model_file} is not a SentencePiece model ({told[:80]}); it is damaged, make it again"
        ) from None


@dataclass(frozen=True)
class IdSpace:
    """Maps specials, text and image codes to ids and back."""

    specials: tuple[str, ...]
    text: sentencepiece.SentencePieceProcessor
    num_codes: int

    @classmethod
    def load(cls, recipe: Recipe, model_file: Path) -> IdSpace:
        if not model_file.is_file():
            raise FileNotFoundError(f"no tokenizer at {model_file}; `geminid train {recipe.name}` makes one")
        return cls(special_names(recipe), pieces_of(model_file), recipe.codec.num_codes)

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.specials)}

    @property
    def text_start(self) -> int:
        return len(self.specials)

    @property
    def code_start(self) -> int:
        return self.text_start + self.text.get_piece_size()

    @property
    def size(self) -> int:
        return self.code_start + self.num_codes

    def special(self, name: str) -> int:
        """Id of a special; ValueError names the closest family when there is none."""
        if name not in self._special_ids:
            family = name.split(":")[0]
            known = [s for s in self.specials if s.split(":")[0] == family] or list(FIXED_SPECIALS)
            raise ValueError(f"unknown special '{name}'; known: {', '.join(known)}")
        return self._special_ids[name]

    def encode(self, text: str) -> list[int]:
        """Text pieces, no bos or eos."""
        return [i + self.text_start for i in self.text.encode(text)]

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """The text pieces among `ids`, as text."""
        return self.text.decode([int(i) - self.text_start for i in ids if self.text_start <= i < self.code_start])

    def encode_codes(self, codes: np.ndarray) -> list[int]:
        """`<boi> height width codes... <eoi>`, row by row. codes: int [h w]."""
        height, width = codes.shape
        return [
            self.special("boi"),
            self.special(f"size:{height}"),
            self.special(f"size:{width}"),
            *(codes.reshape(-1) + self.code_start).tolist(),
            self.special("eoi"),
        ]

    def decode_codes(self, ids: list[int] | np.ndarray, height: int, width: int) -> np.ndarray:
        """The image codes among `ids` as int [h w]; ValueError when their number differs."""
        codes = np.array([i for i in ids if i >= self.code_start], np.int32) - self.code_start
        if codes.size != height * width:
            raise ValueError(f"{codes.size} image codes for a {height} x {width} image; need {height * width}")
        return codes.reshape(height, width)
