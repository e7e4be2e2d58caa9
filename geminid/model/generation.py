"""Reading prompts and writing on, id by id, with a cache of fixed size. Axis letters: see `geminid.model`; R slots.

`read` takes in the next part of every row's prompt, `write` is the loop that decodes. Both are pure and meant to be
compiled once. Rows have lengths of their own, and nothing in a row depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geminid.model.cache import Session, held
from geminid.model.decoder import Decoder, DecoderBlock, Rotary, layer_windows
from geminid.model.matrices import RowTable, Table

NOTHING = -1  # in place of an id, after a row's end


class Unstacked(nnx.Module):
    """A decoder with every layer by itself, and with its matrices as they are read fastest.

    store: (name such as "mlp/gate", weight [in out]) -> an array, or one of `geminid.model.matrices`; table: the same
    for the embedding [V D].
    """

    def __init__(
        self,
        decoder: Decoder,
        store: Callable[[str, Array], Any] = lambda name, weight: weight,
        table: Callable[[Array], Table] = RowTable,
    ):
        self.config = decoder.config
        graph, state = nnx.split(decoder.layers)
        self.layers = nnx.List([])
        for i in range(decoder.config.num_layers):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
            for path, node in nnx.iter_graph(block):
                if isinstance(node, nnx.Param) and node.ndim == 2:
                    node.set_value(store("/".join(map(str, path)), node.get_value()))
            self.layers.append(block)
        self.norm = nnx.clone(decoder.norm)
        self.table = nnx.Param(table(decoder.embedding.get_value()))

    def embed(self, ids: Array) -> Array:
        """ids int [B T] -> [B T D] in the compute dtype."""
        x = self.table.get_value().rows(ids).astype(self.config.dtype)
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.scale_embedding else x

    def best(self, hidden: Array, count: int) -> tuple[Array, Array]:
        """The `count` highest logits after hidden [B D], highest first, float32 [B count], and their ids."""
        scores, ids = self.table.get_value().best(hidden, count)
        cap = self.config.logit_soft_cap
        return scores if cap is None else cap * jnp.tanh(scores / cap), ids

    def blocks(self) -> list[tuple[DecoderBlock, int, Rotary]]:
        """Each layer, with how many positions it sees and how it turns."""
        windows = layer_windows(self.config)
        rotary = Rotary.of(self.config)
        return [
            (block, window, jax.tree.map(lambda leaf, i=i: leaf[i], rotary))
            for i, (block, window) in enumerate(zip(self.layers, windows, strict=True))
        ]


def read(model: Unstacked, session: Session, ids: Array, counts: Array, fresh: bool) -> Session:
    """Reads the first `counts` int [B] of `ids` int [B T] after what each row has read before.

    fresh: nothing was read before, so nothing is looked up.
    """
    steps = jnp.arange(ids.shape[1])
    positions = session.lengths[:, None] + steps
    present = jnp.broadcast_to(steps < counts[:, None], ids.shape)
    x, layers = model.embed(ids), []
    for (block, window, rotary), cache in zip(model.blocks(), session.layers, strict=True):
        q, k, v = block.project(x, positions, rotary)
        keys, values, keys_at, there = k, v, positions, present
        if not fresh:
            before = held(cache.num_slots, session.lengths)
            keys, values = jnp.concatenate([cache.keys, k], 1), jnp.concatenate([cache.values, v], 1)
            keys_at, there = jnp.concatenate([before, positions], 1), jnp.concatenate([before >= 0, present], 1)
        distance = positions[:, :, None] - keys_at[:, None, :]
        x = block.finish(x, q, keys, values, there[:, None, :] & (distance >= 0) & (distance < window))
        layers.append(cache.extend(k, v, session.lengths, counts))
    last = jnp.take_along_axis(x, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    hidden = jnp.where((counts > 0)[:, None], model.norm(last), session.hidden)
    return Session(tuple(layers), session.lengths + counts, hidden)


def advance(model: Unstacked, session: Session, ids: Array, alive: Array) -> Session:
    """Reads one more id of every row, ids int [B]; rows that are not alive, bool [B], keep their lengths."""
    positions = session.lengths[:, None]
    x, layers = model.embed(ids[:, None]), []
    for (block, _, rotary), cache in zip(model.blocks(), session.layers, strict=True):
        q, k, v = block.project(x, positions, rotary)
        cache = cache.append(k, v, session.lengths)
        mask = held(cache.num_slots, session.lengths + 1) >= 0  # a ring holds no more than its layer's window
        x = block.finish(x, q, cache.keys, cache.values, mask[:, None, :])
        layers.append(cache)
    return Session(tuple(layers), session.lengths + alive, model.norm(x[:, 0]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How each row chooses.

    temperature float32 [B], 0 for the likeliest id; top_k int32 [B]: from so many of the likeliest; top_p float32 [B]:
    from the fewest of these that together have this probability (Holtzman et al. 2020, arXiv 1904.09751); keys [B]:
    random keys.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    keys: Array


def choose(scores: Array, ids: Array, sampling: Sampling, times: Array) -> Array:
    """The next id of every row, int32 [B].

    scores float32 and ids int [B N]: the N highest logits, highest first; no row's top_k is greater. times int [B]: how
    many ids stand before the next. A row's noise is a function of its key, `times` and the id alone, so it depends
    neither on its neighbours nor on how the loop is cut into pieces.
    """
    candidates = scores.shape[1]
    if candidates == 1:
        return ids[:, 0].astype(jnp.int32)
    scores = scores / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    scores = jnp.where(jnp.arange(candidates) < sampling.top_k[:, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, -1)
    likelier = jnp.cumsum(probabilities, -1) - probabilities
    noise = jax.vmap(lambda key, time, ids: jax.vmap(lambda i: _gumbel(key, time, i))(ids))(sampling.keys, times, ids)
    # the likeliest id always stays
    nucleus = (likelier < sampling.top_p[:, None]) | (jnp.arange(candidates) == 0)
    noisy = jnp.where(nucleus, scores + noise, -jnp.inf)
    rank = jnp.where(sampling.temperature > 0, jnp.argmax(noisy, -1), 0)
    return jnp.take_along_axis(ids, rank[:, None], axis=1)[:, 0].astype(jnp.int32)


def _gumbel(key: Array, time: Array, identity: Array) -> Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, time), identity))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Writing:
    """Rows in the middle of their answers: ids int [B] that are chosen and not read, left int [B] still to write."""

    session: Session
    ids: Array
    left: Array


def begin(
    model: Unstacked, session: Session, sampling: Sampling, left: Array, stops: Array, candidates: int
) -> Writing:
    """Chooses the first id of every answer.

    left int [B]: how many ids each row is to write, at least 1; stops int [N]: ids that end a row; candidates: among
    how many of the likeliest ids any row may choose, 1 where all take the likeliest.
    """
    ids = choose(*model.best(session.hidden, candidates), sampling, session.lengths)
    return Writing(session, ids, after(ids, left, stops))


def after(ids: Array, left: Array, stops: Array) -> Array:
    """How many ids each row still writes after `ids` int [B]; none after one of `stops` int [N]."""
    return jnp.where(jnp.isin(ids, stops), 0, jnp.maximum(left - 1, 0))


def write(
    model: Unstacked, writing: Writing, sampling: Sampling, stops: Array, steps: int, candidates: int
) -> tuple[Writing, Array]:
    """Up to `steps` more ids of every row, int [B steps], NOTHING after a row's end. Stops when all rows have ended.

    stops, candidates: as in `begin`.
    """

    def go_on(carry: tuple[Writing, Array, Array]) -> Array:
        writing, _, step = carry
        return (step < steps) & jnp.any(writing.left > 0)

    def one(carry: tuple[Writing, Array, Array]) -> tuple[Writing, Array, Array]:
        writing, written, step = carry
        alive = writing.left > 0
        session = advance(model, writing.session, writing.ids, alive)
        ids = choose(*model.best(session.hidden, candidates), sampling, session.lengths)
        written = jax.lax.dynamic_update_slice_in_dim(written, jnp.where(alive, ids, NOTHING)[:, None], step, 1)
        ids = jnp.where(alive, ids, writing.ids)
        return Writing(session, ids, after(ids, writing.left, stops)), written, step + 1

    written = jnp.full((len(writing.ids), steps), NOTHING, jnp.int32)
    writing, written, _ = jax.lax.while_loop(go_on, one, (writing, written, jnp.zeros((), jnp.int32)))
    return writing, written
