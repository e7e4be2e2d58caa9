"""A trained model that answers documents: likelihoods of candidates, words, drawings.

A question is a document that stops before the answer. N questions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from geminid.batches.packing import Shape, assemble
from geminid.config import Recipe
from geminid.document import Document
from geminid.model.multimodal import Model, Sensed
from geminid.model.sampling import Tree, generate, score_tree
from geminid.model.vision import to_float
from geminid.tokens.ids import IdSpace, next_places
from geminid.tokens.stream import Stream, Streamer
from geminid.train import joint, pretrain
from geminid.train.params import load_params
from geminid.train.rundir import RunDir

BATCH = 16  # questions answered at once
GRAIN = 16  # lengths are rounded up to a multiple: few shapes, few compilations
NODE_GRAIN = 192  # names of all languages in one shape
DRAW_ROWS = 64  # written at once
LONGEST_ANSWER = 24  # ids


def rounded(number: int, grain: int) -> int:
    return -(-max(1, number) // grain) * grain


@dataclass(frozen=True)
class Names:
    """Candidates as a prefix tree, see `geminid.model.sampling.Tree`.

    paths: bool [candidates edges], the steps of each candidate.
    """

    ids: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray
    next_ids: np.ndarray
    parents: np.ndarray
    paths: np.ndarray


def prefix_tree(candidates: Sequence[Sequence[int]]) -> Names:
    """Merges candidates (ids each) at their common beginnings."""
    beginnings = {tuple(candidate[:k]) for candidate in candidates for k in range(1, len(candidate))}
    nodes = {path: number for number, path in enumerate(sorted(beginnings))}
    steps = {tuple(candidate[:k]) for candidate in candidates for k in range(1, len(candidate) + 1)}
    edges = {path: number for number, path in enumerate(sorted(steps))}
    ancestors = np.zeros((len(nodes), len(nodes)), bool)
    for path, node in nodes.items():
        for k in range(1, len(path) + 1):
            ancestors[node, nodes[path[:k]]] = True
    paths = np.zeros((len(candidates), len(edges)), bool)
    for row, candidate in zip(paths, candidates, strict=True):
        row[[edges[tuple(candidate[:k])] for k in range(1, len(candidate) + 1)]] = True
    return Names(
        np.array([path[-1] for path in nodes], np.int32),
        np.array([len(path) - 1 for path in nodes], np.int32),
        ancestors,
        np.array([path[-1] for path in edges], np.int32),
        np.array([nodes.get(path[:-1], -1) for path in edges], np.int32),
        paths,
    )


def stack_trees(trees: Sequence[Names]) -> Tree:
    """Trees of one batch, padded to the same number of nodes (a padding node sees itself alone) and edges."""
    most = max(len(tree.next_ids) for tree in trees)
    grain = GRAIN if most <= GRAIN else NODE_GRAIN  # single answers beside all names
    nodes, edges = rounded(max(len(tree.ids) for tree in trees), grain), rounded(most, grain)
    ids, depths = np.zeros((2, len(trees), nodes), np.int32)
    next_ids, parents = np.zeros((2, len(trees), edges), np.int32)
    ancestors = np.tile(np.eye(nodes, dtype=bool), (len(trees), 1, 1))
    for row, tree in enumerate(trees):
        n, e = len(tree.ids), len(tree.next_ids)
        ids[row, :n], depths[row, :n], ancestors[row, :n, :n] = tree.ids, tree.depths, tree.ancestors
        next_ids[row, :e], parents[row, :e] = tree.next_ids, tree.parents
    return Tree(*(jnp.asarray(array) for array in (ids, depths, ancestors, next_ids, parents)))


class Respondent:
    """Model, tokenizers and codec of a run."""

    def __init__(self, recipe: Recipe, model: Model, codec: nnx.Module, space: IdSpace):
        self.recipe, self.space = recipe, space
        self.streamer = Streamer(space, recipe.vision, recipe.audio)
        self._graph, self._params = nnx.split(model)
        self._codec = codec

    @classmethod
    def load(cls, run: RunDir) -> Respondent:
        """The model of a finished run."""
        recipe = run.recipe()
        space = IdSpace.load(recipe, run.tokenizer)
        model = load_params(run.params("joint"), joint.make_model(recipe, space.size))
        codec = load_params(run.params("codec"), pretrain.make_codec(recipe))
        return cls(recipe, model, codec, space)

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        def score(params: Any, arrays: dict[str, jax.Array], tree: Tree) -> jax.Array:
            model = nnx.merge(self._graph, params)
            return score_tree(model, *read(model, arrays), tree)

        return jax.jit(score)

    @functools.cached_property
    def _write(self) -> Callable[..., jax.Array]:
        def write(
            params: Any, arrays: dict[str, jax.Array], allowed: jax.Array, places: jax.Array, key: jax.Array,
            temperature: float, guidance: float, stop: int,
        ) -> jax.Array:  # fmt: skip
            model = nnx.merge(self._graph, params)
            return generate(model, *read(model, arrays), allowed, key, temperature, guidance, stop, places)

        return jax.jit(write, static_argnames=("temperature", "guidance", "stop"))

    def _batches(self, questions: Sequence[Document]) -> list[tuple[slice, dict[str, jax.Array]]]:
        """Questions as arrays, BATCH at a time, all batches of one shape; the last is filled up with repeats."""
        streams = [self.streamer(question) for question in questions]
        length = rounded(max(len(stream) for stream in streams), GRAIN)
        pictures = max(len(stream.pictures) for stream in streams)
        clips = max(len(stream.mels) for stream in streams)
        out = []
        for begin in range(0, len(streams), BATCH):
            part = streams[begin : begin + BATCH]
            filled = part + [part[-1]] * (BATCH - len(part))
            out.append((slice(begin, begin + len(part)), self._arrays(filled, length, pictures, clips)))
        return out

    def _arrays(self, streams: list[Stream], length: int, pictures: int, clips: int) -> dict[str, jax.Array]:
        recipe = self.recipe
        shape = Shape(
            rows=len(streams), length=length, pictures=pictures * len(streams), clips=clips * len(streams),
            picture_size=recipe.data.picture_size, soft_per_picture=recipe.vision.num_soft_tokens,
            soft_per_clip=recipe.audio.num_soft_tokens, num_frames=recipe.audio.num_frames,
            num_mels=recipe.audio.num_mels, answers=0,
        )  # fmt: skip
        batch = assemble([[stream] for stream in streams], shape, self.space)
        return {name: jnp.asarray(array) for name, array in batch.items()}

    def names(self, texts: Sequence[str], end: bool = True) -> Names:
        """Candidate answers; `end`: complete with the end of the document."""
        last = [self.space.special("eos")] if end else []
        return prefix_tree([[*self.space.encode(text), *last] for text in texts])

    def likelihoods(self, questions: Sequence[Document], candidates: Names | Sequence[Names]) -> np.ndarray:
        """Log-likelihood of every candidate as the answer to every question: float32 [N candidates].

        candidates: the same for all questions, or as many for each question.
        """
        trees = [candidates] * len(questions) if isinstance(candidates, Names) else list(candidates)
        rows = []
        for at, arrays in self._batches(questions):
            part = trees[at]
            tree = stack_trees(part + [part[-1]] * (BATCH - len(part)))
            scores = np.asarray(self._score(self._params, arrays, tree))
            rows += [names.paths @ row[: len(names.next_ids)] for row, names in zip(scores, part, strict=False)]
        return np.stack(rows)

    def say(self, questions: Sequence[Document]) -> list[str]:
        """The answer in words, likeliest id after likeliest id, up to the end of the document."""
        eos = self.space.special("eos")
        allowed = np.zeros((LONGEST_ANSWER, self.space.size), bool)
        allowed[:, self.space.text_start : self.space.code_start] = True
        allowed[:, eos] = True
        nowhere = jnp.zeros(LONGEST_ANSWER, jnp.int32)
        texts: list[str] = []
        for at, arrays in self._batches(questions):
            ids = self._write(
                self._params, arrays, jnp.asarray(allowed), nowhere, jax.random.key(0), temperature=0.0, guidance=1.0,
                stop=eos,
            )  # fmt: skip
            rows = np.asarray(ids)[: at.stop - at.start]
            texts += [self.space.decode(row[: np.argmax(np.append(row, eos) == eos)]) for row in rows]
        return texts

    def draw(
        self, prompts: Sequence[Document], unconditional: Sequence[Document], *, seed: int, temperature: float,
        guidance: float,
    ) -> np.ndarray:  # fmt: skip
        """Pictures uint8 [N S S 3] for drawing questions, with classifier-free guidance against `unconditional`.

        guidance 1 needs no unconditional prompts.
        """
        side = self.recipe.data.picture_size // self.recipe.codec.downsample
        head = self.space.encode_codes(np.zeros((side, side), np.int32))[:3]  # <boi> height width
        allowed = np.zeros((side * side, self.space.size), bool)
        allowed[:, self.space.code_start :] = True
        places = jnp.asarray(next_places(side, side)[len(head) :])
        sides = (prompts,) if guidance == 1.0 else (prompts, unconditional)
        each = DRAW_ROWS // len(sides)
        longest = max(len(self.streamer(document)) for documents in sides for document in documents) + len(head)
        pictures = []
        for begin in range(0, len(prompts), each):
            chosen = list(range(begin, min(begin + each, len(prompts))))
            filled = chosen + [chosen[-1]] * (each - len(chosen))
            streams = [
                opened(self.streamer(documents[k]), head, next_places(side, side))
                for documents in sides
                for k in filled
            ]
            ids = self._write(
                self._params, self._arrays(streams, rounded(longest, GRAIN), 0, 0), jnp.asarray(allowed), places,
                jax.random.fold_in(jax.random.key(seed), begin), temperature=temperature, guidance=guidance, stop=-1,
            )  # fmt: skip
            codes = [self.space.decode_codes(row, side, side) for row in np.asarray(ids)[: len(chosen)]]
            pictures.append(self.decode(np.stack(codes)))
        return np.concatenate(pictures)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Image codes int [N h w] -> pictures uint8 [N S S 3]."""
        return to_pixels(self._codec.decode(jnp.asarray(codes)))  # type: ignore[attr-defined]

    def reconstruct(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [N S S 3] -> their codes int32 [N h w] and what these decode to, uint8 [N S S 3]."""
        codes = np.asarray(self._codec.encode(to_float(jnp.asarray(pixels))))  # type: ignore[attr-defined]
        return codes, self.decode(codes)


def read(model: Model, arrays: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    sensed = Sensed(arrays["pictures"], arrays["mels"], arrays["frames"])
    return model.read(arrays["ids"], arrays["sources"], arrays["places"], arrays["segments"] > 0, sensed)


def opened(stream: Stream, head: list[int], places: np.ndarray) -> Stream:
    """A prompt with the first ids of its answer, whose places are the first of `places`."""
    ids = np.concatenate([stream.ids, np.array(head, np.int32)])
    places = np.concatenate([stream.places, places[: len(head)]])
    return Stream(ids, np.zeros(len(ids), np.float32), places, stream.pictures, stream.mels, stream.soft_per_mel)


def to_pixels(pictures: Any) -> np.ndarray:
    """float [... 3] in [-1, 1] -> uint8."""
    return np.clip(np.round((np.asarray(pictures) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def load_respondent(run_dir: Path) -> Respondent:
    return Respondent.load(RunDir(run_dir))
