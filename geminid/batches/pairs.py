"""Batches of the pretraining stages: pictures; (picture, caption) pairs; (sound, caption) pairs.

Each source is random access: batch `i` depends on the recipe's seed and `i` alone, so the cursor is one number.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol, SupportsIndex

import grain
import numpy as np

from geminid.batches.memory import Memory
from geminid.tokens.ids import IdSpace
from geminid.tokens.letters import letters_by_part

Batch = dict[str, np.ndarray]
CAPTION_LENGTH = 8  # ids; longer names are cut
FIRST_LANGUAGE = 0.5  # share of captions in the recipe's first language
DIGIT_PART = 6  # one word in so many is a digit
CANDIDATES = 256  # names to choose from for a sound


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
    """Two pictures of each drawn core concept, in two styles where there are two, each named in one language.

    A batch: pictures uint8 [batch S S 3], texts int32 [batch T], labels int32 [batch], and the names that the
    labels point at, int32 [concepts T], in the recipe's first language.
    """

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        if batch % 2:
            raise ValueError(f"batch {batch} is odd; pictures come in pairs of one concept, use {batch + 1}")
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        self.concepts = sorted(memory.pictures_by_concept().items())
        self.names = memory.dataset.names
        self.languages = memory.recipe.data.languages
        first = self.languages[0]
        self.table = np.stack([caption_ids(space, first, self.names[first][concept]) for concept, _ in self.concepts])

    def __len__(self) -> int:
        return self.steps

    def caption(self, concept: str, rng: np.random.Generator) -> np.ndarray:
        known = [language for language in self.languages if concept in self.names.get(language, {})]
        language = known[0] if rng.random() < FIRST_LANGUAGE else known[rng.integers(len(known))]
        return caption_ids(self.space, language, self.names[language][concept])

    def two_styles(self, rng: np.random.Generator, pictures: list[int]) -> list[int]:
        """Two of the pictures, in two styles where there are two."""
        metas = self.memory.dataset.pictures
        first = int(rng.choice(pictures))
        others = [i for i in pictures if metas[i].style != metas[first].style]
        others = others or [i for i in pictures if i != first] or [first]
        return [first, int(rng.choice(others))]

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "vision", int(record_key))
        num = self.batch // 2
        labels = rng.choice(len(self.concepts), num, replace=num > len(self.concepts))
        pictures, texts = [], []
        for concept, indices in (self.concepts[k] for k in labels):
            pictures += self.two_styles(rng, indices)
            texts += [self.caption(concept, rng) for _ in range(2)]
        return {
            "pictures": self.memory.pixels[pictures],
            "texts": np.stack(texts),
            "labels": np.repeat(labels, 2).astype(np.int32),
            "names": self.table,
        }


class CaptionedClips:
    """Two clips of each drawn word in each drawn language, and digits: what is said, as text.

    A batch mixes languages: batches of one language each were tried, and every one undid what the others taught.
    It holds mels float32 [batch frames mels], frames int32 [batch], texts int32 [batch T], labels int32 [batch],
    the names that the labels point at, int32 [candidates T] (those of the batch, then others drawn at random),
    and letters bool [batch parts letters], which occur in which part of what is said.
    """

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        if batch % 2:
            raise ValueError(f"batch {batch} is odd; clips come in pairs of one word, use {batch + 1}")
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        self.words: dict[str, list[int]] = {}
        self.digits: dict[str, list[int]] = {}
        self.texts: dict[str, np.ndarray] = {}
        names = memory.dataset.names
        for i in memory.train_clips("name", "digit"):
            meta = memory.dataset.clips[i]
            key = f"digit {meta.digit}" if meta.kind == "digit" else f"{meta.language} {meta.concept}"
            (self.digits if meta.kind == "digit" else self.words).setdefault(key, []).append(i)
            if meta.concept is None:
                self.texts[key] = caption_ids(space, None, str(meta.digit), digit=True)
            else:
                self.texts[key] = caption_ids(space, meta.language, names[meta.language][meta.concept])
        if not self.words:
            raise ValueError("the data set has no spoken names; add a package with recordings or synthetic voices")
        self.keys = sorted(self.texts)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "audio", int(record_key))
        num_digits = self.batch // 2 // DIGIT_PART if self.digits else 0
        drawn = draw(rng, self.words, self.batch // 2 - num_digits)
        drawn += draw(rng, self.digits, num_digits) if num_digits else []
        drawn = [drawn[k] for k in rng.permutation(len(drawn))]  # only the first part is captioned
        by_key = {**self.words, **self.digits}
        chosen = [i for key in drawn for i in self.two_voices(rng, by_key[key])]
        every = [self.keys[k] for k in rng.permutation(len(self.keys))]
        candidates = list(dict.fromkeys(drawn + every))[:CANDIDATES]
        labels = np.repeat([candidates.index(key) for key in drawn], 2).astype(np.int32)
        table = np.stack([self.texts[key] for key in candidates])
        mels, frames = self.memory.stack_mels(chosen)
        return {
            "mels": mels,
            "frames": frames,
            "texts": table[labels],
            "labels": labels,
            "names": table,
            "letters": np.stack([letters_by_part(self.memory.dataset.clips[i].text) for i in chosen]),
        }

    def two_voices(self, rng: np.random.Generator, clips: list[int]) -> list[int]:
        """A real and a synthetic voice of a word where there are both, half of the time; else any two."""
        metas = self.memory.dataset.clips
        real = [i for i in clips if metas[i].real]
        if real and len(real) < len(clips) and rng.random() < 0.5:
            return [int(rng.choice(real)), int(rng.choice([i for i in clips if not metas[i].real]))]
        synthetic = [i for i in clips if not metas[i].real]
        synthetic = synthetic if len(synthetic) > 1 else clips
        return rng.choice(synthetic, 2, replace=len(synthetic) < 2).tolist()


def draw(rng: np.random.Generator, by_key: dict[str, list[int]], count: int) -> list[str]:
    """`count` keys, different ones where there are enough."""
    known = sorted(by_key)
    return [known[k] for k in rng.choice(len(known), count, replace=count > len(known))]
