"""The engine: prompts of ids in, answers of ids out, a few at a time. It knows no text.

Everything that is compiled has a fixed shape: rows, pieces of prompts and the room for a conversation are rounded up to
powers of two, so a new prompt seldom needs a new program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geminid.model.cache import Session
from geminid.model.generation import NOTHING, Sampling, Unstacked, begin, read, write

LEAST_ROOM = 256  # positions
PROMPT_PIECES = (16, 512)  # ids of a prompt that are read at once: at least, at most


@dataclass(frozen=True)
class Options:
    """How one answer is chosen and when it ends.

    temperature 0 takes the likeliest id, and then the other three mean nothing. top_k None: from all ids.
    """

    max_new: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new < 1:
            raise ValueError(f"an answer of {self.max_new} ids cannot be written; ask for at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the likeliest id) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be 1 or more, or left out")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must be 0 to {(1 << 32) - 1}")


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(least - 1, 0).bit_length()


class Engine:
    """A decoder that is ready to answer.

    stops: ids that end an answer and are not part of it. max_length: the longest prompt and answer together.
    """

    def __init__(self, model: Unstacked, num_ids: int, stops: Sequence[int] = (), max_length: int = 8192):
        self.config, self.num_ids, self.max_length = model.config, num_ids, max_length
        self.stops = jnp.array(sorted(set(stops)), jnp.int32)
        graph, state = nnx.split(model)
        self._weights, tree = jax.tree.flatten(state)

        def compiled(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
            def run(weights: list[Array], carried: Any, *rest: Any, **kwargs: Any) -> Any:
                return function(nnx.merge(graph, jax.tree.unflatten(tree, weights)), carried, *rest, **kwargs)

            return functools.partial(jax.jit(run, static_argnames=static, donate_argnums=1), self._weights)

        self._read = compiled(read, "fresh")
        self._begin = compiled(begin, "candidates")
        self._write = compiled(write, "steps", "candidates")

    def stream(
        self, prompts: Sequence[Sequence[int]], options: Sequence[Options], steps: int = 8
    ) -> Iterator[list[list[int]]]:
        """The new ids of every answer: first one each, then up to `steps` at a time, until all answers have ended."""
        self._check(prompts, options)
        rows = power_of_two(len(prompts))
        filled = [*options, *[Options(max_new=1)] * (rows - len(prompts))]
        candidates = self._candidates(options)
        sampling = Sampling(
            jnp.array([one.temperature for one in filled], jnp.float32),
            jnp.array([one.top_k or self.num_ids for one in filled], jnp.int32),
            jnp.array([one.top_p for one in filled], jnp.float32),
            jax.vmap(jax.random.key)(jnp.array([one.seed for one in filled], jnp.uint32)),
        )
        session = self._read_all([*prompts, *[[0]] * (rows - len(prompts))], self._room(prompts, options))
        left = jnp.array([one.max_new for one in filled], jnp.int32)
        writing = self._begin(session, sampling, left, self.stops, candidates=candidates)
        new, left = np.asarray(writing.ids)[:, None], np.asarray(writing.left)
        while True:
            yield [[int(i) for i in row if i not in self._ends] for row in new[: len(prompts)]]
            if not left.any():
                return
            writing, new = self._write(writing, sampling, self.stops, steps=steps, candidates=candidates)
            new, left = np.asarray(new), np.asarray(writing.left)

    def answer(self, prompts: Sequence[Sequence[int]], options: Sequence[Options]) -> list[list[int]]:
        """The whole answers."""
        answers: list[list[int]] = [[] for _ in prompts]
        for new in self.stream(prompts, options, steps=32):
            for answer, ids in zip(answers, new, strict=True):
                answer += ids
        return answers

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset([NOTHING, *np.asarray(self.stops).tolist()])

    def _candidates(self, options: Sequence[Options]) -> int:
        drawn = [one for one in options if one.temperature > 0]
        most = max((one.top_k or self.num_ids for one in drawn), default=1)
        return min(power_of_two(most), self.num_ids)

    def _room(self, prompts: Sequence[Sequence[int]], options: Sequence[Options]) -> int:
        most = max(len(prompt) + one.max_new for prompt, one in zip(prompts, options, strict=True))
        return max(power_of_two(most), LEAST_ROOM)

    def _read_all(self, prompts: Sequence[Sequence[int]], room: int) -> Session:
        session = Session.empty(self.config, len(prompts), room)
        longest, at = max(map(len, prompts)), 0
        while at < longest:
            least, most = PROMPT_PIECES
            width = min(max(power_of_two(longest - at), least), most)
            ids = np.zeros((len(prompts), width), np.int32)
            counts = np.zeros(len(prompts), np.int32)
            for row, prompt in enumerate(prompts):
                part = prompt[at : at + width]
                ids[row, : len(part)], counts[row] = part, len(part)
            session = self._read(session, jnp.asarray(ids), jnp.asarray(counts), fresh=at == 0)
            at += width
        return session

    def _check(self, prompts: Sequence[Sequence[int]], options: Sequence[Options]) -> None:
        if not prompts or len(prompts) != len(options):
            raise ValueError(f"{len(prompts)} prompts and {len(options)} options; give as many of each, at least one")
        for prompt, one in zip(prompts, options, strict=True):
            if not prompt:
                raise ValueError("a prompt is empty; give at least one id")
            if not 0 <= min(prompt) <= max(prompt) < self.num_ids:
                bad = next(i for i in prompt if not 0 <= i < self.num_ids)
                raise ValueError(f"id {bad} is outside the {self.num_ids} ids of the model")
            if len(prompt) + one.max_new > self.max_length:
                raise ValueError(
                    f"{len(prompt)} ids of a prompt and {one.max_new} to write do not fit {self.max_length} positions;"
                    " shorten the prompt or ask for fewer"
                )
