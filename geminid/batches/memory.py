"""The built data set held in memory, as the stages read it: pictures, log-mels, texts.

S picture side, T frames of log-mel, M mels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from geminid.config import Recipe
from geminid.corpus.store import Dataset
from geminid.tokens.audio import log_mel


@dataclass(frozen=True)
class Memory:
    """Arrays of a data set, decoded once. Each kind is read when it is first asked for."""

    recipe: Recipe
    dataset: Dataset

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [pictures S S 3]."""
        return np.stack([self.dataset.picture(i) for i in range(len(self.dataset.pictures))])

    @cached_property
    def mels(self) -> list[np.ndarray]:
        """float16 [T M] of every clip: features of 3 significant digits, half the memory."""
        return [
            log_mel(self.dataset.clip(i), self.recipe.audio).astype(np.float16) for i in range(len(self.dataset.clips))
        ]

    @cached_property
    def train_pictures(self) -> list[int]:
        return [i for i, meta in enumerate(self.dataset.pictures) if meta.split == "train"]

    def pictures_by_concept(self) -> dict[str, list[int]]:
        """Training pictures of each core concept, in index order."""
        found: dict[str, list[int]] = {}
        for i in self.train_pictures:
            meta = self.dataset.pictures[i]
            if meta.core:
                found.setdefault(meta.concept, []).append(i)
        return found

    def train_clips(self, *kinds: str) -> list[int]:
        return [i for i, meta in enumerate(self.dataset.clips) if meta.split == "train" and meta.kind in kinds]

    def stack_mels(self, indices: list[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-mels zero-padded to the recipe's longest clip: float32 [n T M] and frames int32 [n]."""
        return pad_mels([self.mels[i] for i in indices], self.recipe.audio.num_frames)


def pad_mels(mels: list[np.ndarray], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Zero-pads (and cuts) log-mels [T M] to [n num_frames M]; also their frames int32 [n]."""
    num_mels = mels[0].shape[1] if mels else 0
    out = np.zeros((len(mels), num_frames, num_mels), np.float32)
    for row, mel in zip(out, mels, strict=True):
        row[: len(mel)] = mel[:num_frames]
    return out, np.array([min(len(mel), num_frames) for mel in mels], np.int32)
