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
        self.concepts = sorted(memory.pictures_by_concept(core=True).items())
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
    """Two clips of each drawn word, all in one language, and digits in any: what is said, as text.

    A batch: mels float32 [batch frames mels], frames int32 [batch], texts int32 [batch T], labels int32 [batch],
    the names that the labels point at, int32 [concepts + 10, T] (all of the language, then the numerals), and
    letters bool [batch parts letters], which occur in which part of what is said.
    """

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        if batch % 2:
            raise ValueError(f"batch {batch} is odd; clips come in pairs of one word, use {batch + 1}")
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        self.concepts = memory.dataset.concepts
        clips = memory.dataset.clips
        place = {concept: k for k, concept in enumerate(self.concepts)}
        self.words: dict[str, dict[int, list[int]]] = {}
        for i in memory.train_clips("name"):
            concept = clips[i].concept
            assert concept is not None
            self.words.setdefault(clips[i].language, {}).setdefault(place[concept], []).append(i)
        self.digits: dict[int, list[int]] = {}
        for i in memory.train_clips("digit"):
            value = clips[i].digit
            assert value is not None
            self.digits.setdefault(len(self.concepts) + value, []).append(i)
        if not self.words:
            raise ValueError("the data set has no spoken names; add a package with recordings or synthetic voices")
        self.languages = sorted(self.words)
        numerals = [caption_ids(space, None, str(value), digit=True) for value in range(10)]
        self.tables = {k: np.stack([*self._names(k), *numerals]) for k in self.languages}

    def _names(self, language: str) -> list[np.ndarray]:
        names = self.memory.dataset.names.get(language, {})
        return [caption_ids(self.space, language, names.get(concept, "")) for concept in self.concepts]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "audio", int(record_key))
        language = self.languages[rng.integers(len(self.languages))]
        num_digits = self.batch // 2 // DIGIT_PART if self.digits else 0
        labels = draw(rng, self.words[language], self.batch // 2 - num_digits)
        labels += draw(rng, self.digits, num_digits) if num_digits else []
        labels = [labels[k] for k in rng.permutation(len(labels))]  # only the first part is captioned
        by_label = {**self.words[language], **self.digits}
        chosen = [i for label in labels for i in self.two_voices(rng, by_label[label])]
        mels, frames = self.memory.stack_mels(chosen)
        repeated = np.repeat(np.array(labels, np.int32), 2)
        table = self.tables[language]
        return {
            "mels": mels,
            "frames": frames,
            "texts": table[repeated],
            "labels": repeated,
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


def draw(rng: np.random.Generator, by_label: dict[int, list[int]], count: int) -> list[int]:
    """`count` labels, different ones where there are enough."""
    known = sorted(by_label)
    return [known[k] for k in rng.choice(len(known), count, replace=count > len(known))]
