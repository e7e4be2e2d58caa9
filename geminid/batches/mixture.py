"""Which documents the joint stage reads: document `i` depends on the recipe's seed and `i` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from geminid.batches.memory import Memory
from geminid.batches.pairs import generator
from geminid.batches.sprites import moving_sprite
from geminid.corpus import documents
from geminid.document import Document
from geminid.tokens.ids import time_tag

OWN_LANGUAGE = 0.9  # share of recordings that are answered in the language that is spoken
SOUNDS = 0.03  # share of what the things themselves sound like among what is heard
SPRITES = 0.7  # share of videos that are made of moving still pictures
VIDEO_FRAMES = 4
FEW_SHOT_QUESTIONS = 6  # at most


class Mixture:
    """Documents of all tasks in the proportions of the recipe. codes: int32 [pictures h w] of every picture."""

    def __init__(self, memory: Memory, codes: np.ndarray):
        self.memory, self.codes = memory, codes
        self.dataset, self.recipe = memory.dataset, memory.recipe
        self.by_concept = memory.pictures_by_concept()
        self.concepts = sorted(self.by_concept)
        self.languages = [k for k in self.recipe.data.languages if self.dataset.names.get(k)]
        self.animations = [i for i, meta in enumerate(self.dataset.animations) if meta.split == "train"]
        clips = self.dataset.clips
        self.digits = memory.train_clips("digit")
        self.sounds = memory.train_clips("sound")
        self.synthetic_names = [i for i in memory.train_clips("name") if not clips[i].real]
        self.real_words = frozenset(name for k in self.languages for name in self.dataset.names[k].values())
        weights = dataclasses.asdict(self.recipe.joint.mixture)
        possible = {name: self._can(name) * weight for name, weight in weights.items()}
        self.tasks = sorted(possible)
        self.shares = np.array([possible[name] for name in self.tasks])
        self.shares = self.shares / self.shares.sum()

    def _can(self, task: str) -> bool:
        """Whether the data set has what a task needs."""
        needs = {"hear": self.synthetic_names, "digit": self.digits, "translate": self.languages[1:]}
        return bool(needs.get(task, True))

    def __call__(self, i: int) -> Document:
        rng = generator(self.recipe.seed, "joint", i)
        task = self.tasks[rng.choice(len(self.tasks), p=self.shares)]
        make: Callable[[np.random.Generator], Document] = getattr(self, task)
        return make(rng)

    def name(self, rng: np.random.Generator, concept: str, english: float = 0.3) -> tuple[str, str]:
        """A language that has the concept, and its name there."""
        known = [language for language in self.languages if concept in self.dataset.names[language]]
        language = "en" if "en" in known and rng.random() < english else known[rng.integers(len(known))]
        return language, self.dataset.names[language][concept]

    def concept(self, rng: np.random.Generator) -> str:
        return self.concepts[rng.integers(len(self.concepts))]

    def picture(self, rng: np.random.Generator, concept: str) -> np.ndarray:
        return self.memory.pixels[rng.choice(self.by_concept[concept])]

    def see(self, rng: np.random.Generator) -> Document:
        concept = self.concept(rng)
        language, name = self.name(rng, concept)
        return documents.see(self.picture(rng, concept), language, name)

    def hear(self, rng: np.random.Generator) -> Document:
        """Names are spoken by synthetic voices alone: few words have a recording, and answers to those would teach that
        a real voice says one of these few. The encoder has learned from the recordings before."""
        pool = self.sounds if self.sounds and rng.random() < SOUNDS else self.synthetic_names
        i = int(rng.choice(pool))
        meta = self.dataset.clips[i]
        assert meta.concept is not None
        language = meta.language if rng.random() < OWN_LANGUAGE else "en"
        if meta.concept not in self.dataset.names.get(language, {}):
            language, _ = self.name(rng, meta.concept)
        return documents.hear(self.memory.mels[i], language, self.dataset.names[language][meta.concept])

    def digit(self, rng: np.random.Generator) -> Document:
        i = int(rng.choice(self.digits))
        value = self.dataset.clips[i].digit
        assert value is not None
        return documents.digit(self.memory.mels[i], value)

    def watch(self, rng: np.random.Generator) -> Document:
        if self.animations and rng.random() > SPRITES:
            i = int(rng.choice(self.animations))
            meta = self.dataset.animations[i]
            concept = meta.concept
            frames, times = pick_frames(self.dataset.animation(i), meta.times_s, VIDEO_FRAMES)
        else:
            concept = self.concept(rng)
            frames = moving_sprite(rng, self.picture(rng, concept), VIDEO_FRAMES)
            times = np.cumsum(rng.uniform(0.25, 1.0, VIDEO_FRAMES)) - 0.25
        language, name = self.name(rng, concept)
        return documents.watch(frames, [time_tag(t) for t in times], language, name)

    def order(self, rng: np.random.Generator) -> Document:
        chosen = [self.concepts[k] for k in rng.choice(len(self.concepts), 3, replace=False)]
        frames = [self.picture(rng, concept) for concept in chosen]
        which = int(rng.integers(3))
        language, name = self.name(rng, chosen[which], english=0.7)
        return documents.order(frames, order_times(rng), documents.ORDER_QUESTIONS[which], language, name)

    def draw(self, rng: np.random.Generator) -> Document:
        concept = self.concept(rng)
        i = int(rng.choice(self.by_concept[concept]))
        prompt = None if rng.random() < self.recipe.joint.prompt_dropout else self.name(rng, concept, english=0.8)[1]
        return documents.draw(prompt, self.dataset.pictures[i].style, self.codes[i])

    def translate(self, rng: np.random.Generator) -> Document:
        concept = self.concept(rng)
        known = [language for language in self.languages if concept in self.dataset.names[language]]
        a, b = (known[k] for k in rng.choice(len(known), 2, replace=False))
        return documents.translate(a, self.dataset.names[a][concept], b, self.dataset.names[b][concept])

    def few_shot(self, rng: np.random.Generator) -> Document:
        concepts = [self.concepts[k] for k in rng.choice(len(self.concepts), 2, replace=False)]
        words = documents.made_up_words(rng, 2, self.real_words)
        first = [(self.picture(rng, c), w) for c, w in zip(concepts, words, strict=True)]
        asked = rng.integers(2, size=rng.integers(1, FEW_SHOT_QUESTIONS + 1))  # the document may end after any answer
        return documents.few_shot(first, [(self.picture(rng, concepts[k]), words[k]) for k in asked])


def order_times(rng: np.random.Generator) -> list[str]:
    """Time stamps of three pictures shown one after another, half a second to two seconds apart."""
    return [time_tag(t) for t in np.cumsum(rng.uniform(0.5, 2.0, 3)) - 0.5]


def pick_frames(frames: np.ndarray, times_s: tuple[float, ...], count: int) -> tuple[list[np.ndarray], list[float]]:
    """`count` frames evenly over an animation; frames uint8 [F S S 3]."""
    at = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return [frames[k] for k in at], [times_s[k] for k in at]
