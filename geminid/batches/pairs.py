"""Batches of the pretraining stages: pictures; (picture, caption) pairs; (sound, caption) pairs.

Each source is random access: batch `i` depends on the recipe's seed and `i` alone, so the cursor is one number.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol, SupportsIndex

import grain
import numpy as np

from geminid.batches.memory import Memory, clip_label
from geminid.tokens.ids import IdSpace

Batch = dict[str, np.ndarray]
CAPTION_LENGTH = 12  # ids; longer names are cut


class BatchSource(Protocol):
    """Random access to the batches of a stage."""

    def __len__(self) -> int: ...

    def __getitem__(self, record_key: SupportsIndex) -> Batch: ...


def generator(seed: int, stage: str, i: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(stage.encode()), i]))


def iterate(source: BatchSource) -> grain.DatasetIterator:
    """A Grain iterator over the batches, one thread ahead, whose state is saved with each checkpoint."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = grain.MapDataset.source(source)  # pyrefly: ignore[bad-argument-type]
    return iter(dataset.to_iter_dataset(options))


def caption_ids(space: IdSpace, language: str | None, text: str, digit: bool = False) -> np.ndarray:
    """`<language> text <eos>` padded with zeros: int32 [CAPTION_LENGTH]."""
    first = space.special("digit" if digit else f"lang:{language}")
    ids = [first, *space.encode(text)[: CAPTION_LENGTH - 2], space.special("eos")]
    return np.array(ids + [0] * (CAPTION_LENGTH - len(ids)), np.int32)


@dataclass(frozen=True)
class PictureBatches:
    """Training pictures alone, core and extra: uint8 [batch S S 3]."""

    memory: Memory
    batch: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "codec", int(record_key))
        chosen = rng.choice(self.memory.train_pictures, self.batch)
        return {"pictures": self.memory.pixels[chosen]}


class CaptionedPictures:
    """Two pictures of each drawn concept, in two styles where there are two, each with its name in one language."""

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        if batch % 2:
            raise ValueError(f"batch {batch} is odd; pictures come in pairs of one concept, use {batch + 1}")
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        self.core = sorted(memory.pictures_by_concept(core=True).items())
        self.extra = sorted(memory.pictures_by_concept(core=False).items())
        self.labels = {name: k for k, (name, _) in enumerate(self.core + self.extra)}
        self.names = memory.dataset.all_names
        self.languages = memory.recipe.data.languages

    def __len__(self) -> int:
        return self.steps

    def caption(self, concept: str, rng: np.random.Generator) -> np.ndarray:
        known = [language for language in self.languages if concept in self.names.get(language, {})]
        language = "en" if "en" in known and rng.random() < 0.5 else known[rng.integers(len(known))]
        return caption_ids(self.space, language, self.names[language][concept])

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "vision", int(record_key))
        num = self.batch // 2
        num_extra = min(num // 2, len(self.extra))
        num_core = num - num_extra
        core = rng.choice(len(self.core), num_core, replace=num_core > len(self.core))
        drawn = [self.core[k] for k in core]
        if num_extra:
            drawn += [self.extra[k] for k in rng.choice(len(self.extra), num_extra, replace=False)]
        pictures, texts, labels = [], [], []
        for concept, indices in drawn:
            for k in rng.choice(indices, 2, replace=len(indices) < 2):
                pictures.append(k)
                texts.append(self.caption(concept, rng))
                labels.append(self.labels[concept])
        return {
            "pictures": self.memory.pixels[pictures],
            "texts": np.stack(texts),
            "labels": np.array(labels, np.int32),
        }


class CaptionedClips:
    """Sounds with what they say: half in the spoken language, half in English; digits as numerals."""

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        self.by_label: dict[str, list[int]] = {}
        for i in memory.train_clips("name", "digit", "sound"):
            self.by_label.setdefault(clip_label(memory.dataset.clips[i]), []).append(i)
        if not self.by_label:
            raise ValueError("the data set has no training clips; add a package with recordings or synthetic voices")
        self.all_labels = sorted(self.by_label)

    def __len__(self) -> int:
        return self.steps

    def caption(self, i: int, rng: np.random.Generator) -> np.ndarray:
        meta = self.memory.dataset.clips[i]
        if meta.kind == "digit":
            return caption_ids(self.space, None, str(meta.digit), digit=True)
        names = self.memory.dataset.names
        assert meta.concept is not None
        language = meta.language if meta.language in names and rng.random() < 0.7 else "en"
        return caption_ids(self.space, language, names[language][meta.concept])

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "audio", int(record_key))
        num = self.batch // 2
        labels = rng.choice(len(self.all_labels), num, replace=num > len(self.all_labels))
        chosen = [rng.choice(self.by_label[self.all_labels[k]]) for k in labels for _ in range(2)]
        mels, frames = self.memory.stack_mels(chosen)
        return {
            "mels": mels,
            "frames": frames,
            "texts": np.stack([self.caption(int(k), rng) for k in chosen]),
            "labels": np.repeat(labels, 2).astype(np.int32),
        }
