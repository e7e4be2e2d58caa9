"""What every measurement needs: the respondent, the held-out data, candidates, and controls.

N questions, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from geminid.batches.memory import Memory
from geminid.evaluate.respondent import Names, Respondent

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A trained model beside the data set it was kept from."""

    respondent: Respondent
    memory: Memory
    seed: int
    _trees: dict[str, Names] = field(default_factory=dict)

    @cached_property
    def concepts(self) -> list[str]:
        """Core concepts: the candidates of all questions."""
        return list(self.memory.dataset.concepts)

    @cached_property
    def number(self) -> dict[str, int]:
        return {concept: k for k, concept in enumerate(self.concepts)}

    def name(self, concept: str, language: str) -> str:
        return self.memory.dataset.names[language][concept]

    def known(self, language: str) -> list[str]:
        """Concepts that have a name in `language`."""
        return [c for c in self.concepts if c in self.memory.dataset.names.get(language, {})]

    def candidates(self, language: str) -> tuple[list[str], Names]:
        """All names in `language`, in the order of `known`, and their prefix tree."""
        texts = [self.name(concept, language) for concept in self.known(language)]
        if language not in self._trees:
            self._trees[language] = self.respondent.names(texts)
        return texts, self._trees[language]

    def rng(self, task: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, 99, task]))

    def pictures(self, split: str) -> list[int]:
        """Core pictures of a split, in index order."""
        metas = self.memory.dataset.pictures
        return [i for i, meta in enumerate(metas) if meta.split == split and meta.core]

    def clips(self, split: str) -> list[int]:
        return [i for i, meta in enumerate(self.memory.dataset.clips) if meta.split == split]


def share(right: Sequence[bool] | np.ndarray) -> float:
    """Part of the questions answered right, 0 when there are none."""
    return float(np.mean(right)) if len(right) else 0.0


def shuffled(said: Sequence[str], expected: Sequence[str], rng: np.random.Generator) -> float:
    """Accuracy when every question is asked with another question's picture or sound.

    The answer to question i given input j is what was said about j, for the questions differ in their inputs
    alone; so the answers are dealt out anew.
    """
    order = rng.permutation(len(said))
    return share([said[j] == text for j, text in zip(order, expected, strict=True)])
