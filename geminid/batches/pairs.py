"""Batches of the pretraining stages: pictures; (picture, caption) pairs; (sound, caption) pairs.

Each source is random access: batch `i` depends on the recipe's seed and `i` alone, so the cursor is one number.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, TypeVar

import grain
import numpy as np

from geminid.batches.memory import Memory
from geminid.corpus.store import ClipMeta
from geminid.tokens.ids import IdSpace
from geminid.tokens.phones import phone_ids, phones_by_part

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")
CAPTION_LENGTH = 8  # ids; longer names are cut
FIRST_LANGUAGE = 0.5  # share of captions in the recipe's first language
REAL_PART, DIGIT_PART = 4, 8  # one clip in so many is a real recording of a name, a digit


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
    """Pictures of core concepts, each named in one language.

    A batch: pictures uint8 [batch S S 3], texts int32 [batch T], labels int32 [batch], the names that the labels
    point at, int32 [concepts T], in the recipe's first language, and allowed bool [batch concepts], all True.
    """

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        self.memory, self.space, self.batch, self.steps = memory, space, batch, steps
        by_concept = sorted(memory.pictures_by_concept().items())
        self.concepts = [concept for concept, _ in by_concept]
        self.pictures = [(i, label) for label, (_, pictures) in enumerate(by_concept) for i in pictures]
        self.names = memory.dataset.names
        self.languages = memory.recipe.data.languages
        first = self.languages[0]
        self.table = np.stack([caption_ids(space, first, self.names[first][concept]) for concept in self.concepts])

    def __len__(self) -> int:
        return self.steps

    def caption(self, concept: str, rng: np.random.Generator) -> np.ndarray:
        known = [language for language in self.languages if concept in self.names.get(language, {})]
        language = known[0] if rng.random() < FIRST_LANGUAGE else known[rng.integers(len(known))]
        return caption_ids(self.space, language, self.names[language][concept])

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "vision", int(record_key))
        chosen = drawn(rng, self.pictures, self.batch)
        return {
            "pictures": self.memory.pixels[[i for i, _ in chosen]],
            "texts": np.stack([self.caption(self.concepts[label], rng) for _, label in chosen]),
            "labels": np.array([label for _, label in chosen], np.int32),
            "names": self.table,
            "allowed": np.ones((self.batch, len(self.table)), bool),
        }


class CaptionedClips:
    """Spoken names in all languages, synthetic and real, and digits: what is said, as text.

    A batch mixes languages: batches of one language each were tried, and every one undid what the others taught.
    It holds mels float32 [batch frames mels], frames int32 [batch], texts int32 [batch T], labels int32 [batch], the
    names that the labels point at, int32 [words T], allowed bool [batch words], the candidates of each clip, and
    phones bool [batch parts phones], which occur in which part of what is said. Real recordings, which come last,
    choose among the recorded words alone: few words have a recording, and with all words as candidates they taught
    that a real voice says one of those few (86% of the answers to other words). Every name comes twice: a recording and
    a synthetic voice, or two of these, so that voices can be contrasted with words.
    """

    def __init__(self, memory: Memory, space: IdSpace, batch: int, steps: int):
        self.memory, self.batch, self.steps = memory, batch, steps
        clips, names = memory.dataset.clips, memory.dataset.names
        spoken = memory.train_clips("name")
        if all(clips[i].real for i in spoken):
            raise ValueError("the data set has no synthetic voices; set data.synthetic_voices to 1 or more")
        self.digits = memory.train_clips("digit")
        self.real = [i for i in spoken if clips[i].real]
        self.synthetic = [i for i in spoken if not clips[i].real]
        texts: dict[str, np.ndarray] = {}
        for i in (*spoken, *self.digits):
            meta = clips[i]
            if meta.concept is None:
                texts[word(meta)] = caption_ids(space, None, str(meta.digit), digit=True)
            else:
                texts[word(meta)] = caption_ids(space, meta.language, names[meta.language][meta.concept])
        self.labels = {key: label for label, key in enumerate(sorted(texts))}
        self.table = np.stack([texts[key] for key in self.labels])
        self.voices: dict[str, list[int]] = {}
        for i in self.synthetic:
            self.voices.setdefault(word(clips[i]), []).append(i)
        recorded = {word(clips[i]) for i in (*self.real, *self.digits)}
        self.recorded = np.array([key in recorded for key in self.labels])

    def __len__(self) -> int:
        return self.steps

    def another(self, rng: np.random.Generator, i: int) -> int:
        """Another synthetic clip of the word of clip `i`; any, where there is none."""
        others = [k for k in self.voices.get(word(self.memory.dataset.clips[i]), ()) if k != i] or self.synthetic
        return others[rng.integers(len(others))]

    def phones(self, i: int) -> np.ndarray:
        """What is heard of clip `i` before it is cut, bool [parts phones]."""
        meta, audio = self.memory.dataset.clips[i], self.memory.recipe.audio
        heard = min(1.0, audio.max_s * audio.sample_rate / meta.num_samples)
        return phones_by_part(phone_ids(self.memory.dataset.phones[meta.language][meta.text]), heard)

    def __getitem__(self, record_key: SupportsIndex) -> Batch:
        rng = generator(self.memory.recipe.seed, "audio", int(record_key))
        real = drawn(rng, self.real, self.batch // REAL_PART if self.real else 0)
        digits = drawn(rng, self.digits, self.batch // DIGIT_PART if self.digits else 0)
        room = self.batch - len(real) - len(digits)
        partners = [self.another(rng, i) for i in real[:room]]
        first = drawn(rng, self.synthetic, -(-(room - len(partners)) // 2))
        others = [*digits, *partners, *first, *(self.another(rng, i) for i in first)][: self.batch - len(real)]
        others = [others[k] for k in rng.permutation(len(others))]  # only the first part is captioned
        chosen = others + real
        labels = np.array([self.labels[word(self.memory.dataset.clips[i])] for i in chosen], np.int32)
        allowed = np.ones((self.batch, len(self.table)), bool)
        allowed[len(others) :] = self.recorded
        mels, frames = self.memory.stack_mels(chosen)
        return {
            "mels": mels,
            "frames": frames,
            "texts": self.table[labels],
            "labels": labels,
            "names": self.table,
            "allowed": allowed,
            "phones": np.stack([self.phones(i) for i in chosen]),
        }


def word(meta: ClipMeta) -> str:
    """What is said, whoever says it: a concept's name in a language, or a digit in any."""
    return f"digit {meta.digit}" if meta.kind == "digit" else f"{meta.language} {meta.concept}"


def drawn(rng: np.random.Generator, pool: Sequence[Item], count: int) -> list[Item]:
    """`count` of the pool, different ones where there are enough."""
    return [pool[k] for k in rng.choice(len(pool), count, replace=count > len(pool))] if count else []
