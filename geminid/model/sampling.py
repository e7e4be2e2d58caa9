"""Writing after a prompt: one loop for text and images, and the likelihood of many candidates at once.

N ways on from each prompt. Grammar is a table of masks: which ids step t may write.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from geminid.model.decoder import Cache
from geminid.model.multimodal import Context, Model

IMPOSSIBLE = -1e30


def _join(cache: Cache, new: Cache, at: Array | int) -> Cache:
    """Writes keys and values of one position into slot `at`."""
    return tuple(jax.lax.dynamic_update_slice_in_dim(old, one, at, 2) for old, one in zip(cache, new, strict=True))  # type: ignore[return-value]


def generate(
    model: Model,
    last: Array,
    context: Context,
    allowed: Array,
    key: Array,
    temperature: float = 0.0,
    guidance: float = 1.0,
    stop: int = -1,
    places: Array | None = None,
) -> Array:
    """Ids written after each prompt, int32 [B steps].

    last [B D] and context: what `Model.read` returned. allowed bool [steps V] (or [B steps V]): the grammar.
    temperature 0 takes the likeliest id. guidance g > 1: classifier-free guidance (Ho & Salimans 2022,
    arXiv 2207.12598); the batch then holds B conditional prompts and after them the same B prompts without
    condition, both halves write the same ids, and scores are g * conditional + (1 - g) * unconditional.
    After `stop` a row repeats it. places int [steps]: where in an image the id after step t's stands.
    """
    batch, steps = last.shape[0], allowed.shape[-2]
    room = [(0, 0), (0, 0), (0, steps), (0, 0), (0, 0)]
    past = context.present.shape[1]
    cache: Cache = (jnp.pad(context.cache[0], room), jnp.pad(context.cache[1], room))
    begin = context.present.sum(1)
    key_positions = jnp.concatenate([context.positions, begin[:, None] + jnp.arange(steps)], 1)
    present = jnp.concatenate([context.present, jnp.zeros((batch, steps), bool)], 1)

    nowhere = jnp.zeros((), jnp.int32)

    def choose(hidden: Array, t: Array, done: Array) -> Array:
        scores = model.decoder.logits(hidden)
        if guidance != 1.0:
            with_prompt, without = jnp.split(jax.nn.log_softmax(scores), 2)
            scores = jnp.tile(guidance * with_prompt + (1.0 - guidance) * without, (2, 1))
        scores = jnp.where(jnp.take(allowed, t, axis=-2), scores, IMPOSSIBLE)
        if temperature > 0:
            noise = jax.random.gumbel(jax.random.fold_in(key, t), scores.shape)
            if guidance != 1.0:
                noise = jnp.tile(noise[: batch // 2], (2, 1))
            scores = scores / temperature + noise
        return jnp.where(done, stop, jnp.argmax(scores, -1)).astype(jnp.int32)

    def write(carry: tuple, t: Array) -> tuple[tuple, Array]:
        hidden, cache, present, done, before = carry
        ids = choose(hidden, t, done)
        x = model.embed(ids[:, None], jnp.broadcast_to(nowhere if places is None else places[t], (batch, 1)))
        # the new position is a key of its own: slot `past + t` is filled after the layers have run
        mask = jnp.concatenate([present, jnp.ones((batch, 1), bool)], 1)[:, None, :]
        at = (begin + t)[:, None]
        entering = model.after(x, before[:, None])
        out, new = model.decoder(entering, at, mask, jnp.concatenate([key_positions, at], 1), cache)
        present = jax.lax.dynamic_update_slice_in_dim(present, jnp.ones((batch, 1), bool), past + t, 1)
        return (out[:, 0], _join(cache, new, past + t), present, done | (ids == stop), x[:, 0]), ids

    carry = (last, cache, present, jnp.zeros(batch, bool), context.last)
    _, ids = jax.lax.scan(write, carry, jnp.arange(steps))
    return ids.T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tree:
    """Candidates merged at their common beginnings, one tree for each of B prompts.

    Nodes are the beginnings that go on: ids, depths int32 [B nodes]; ancestors bool [B nodes nodes], True for a
    node's ancestors and itself. Edges are the steps to be scored: next_ids int32 [B edges], and parents int32
    [B edges], the node that each one leaves, -1 for the prompt's end.
    """

    ids: Array
    depths: Array
    ancestors: Array
    next_ids: Array
    parents: Array


def score_tree(model: Model, last: Array, context: Context, tree: Tree) -> Array:
    """Log-probability of every edge of a prefix tree after each prompt: float32 [B edges].

    The likelihood of a candidate is the sum over the edges of its path: all candidates in one pass (tree
    attention, Miao et al. 2023, arXiv 2305.09781). last [B D] and context: what `Model.read` returned.
    """
    batch, nodes = tree.ids.shape
    x = model.embed(tree.ids, jnp.zeros_like(tree.ids))
    is_parent = tree.ancestors & (tree.depths[:, None, :] == tree.depths[:, :, None] - 1)
    before = jnp.where(
        (tree.depths == 0)[..., None], context.last[:, None], jnp.einsum("bij,bjd->bid", is_parent.astype(x.dtype), x)
    )
    positions = context.present.sum(1)[:, None] + tree.depths
    past = jnp.broadcast_to(context.present[:, None, :], (batch, nodes, context.present.shape[1]))
    mask = jnp.concatenate([past, tree.ancestors], -1)
    keys_at = jnp.concatenate([context.positions, positions], 1)
    hidden, _ = model.decoder(model.after(x, before), positions, mask, keys_at, context.cache)
    scores = model.decoder.logits(jnp.concatenate([last[:, None], hidden], 1))  # [B 1+nodes V]
    parents = tree.parents + 1
    chosen = jax.vmap(lambda rows, at, ids: rows[at, ids])(scores, parents, tree.next_ids)
    return chosen - jnp.take_along_axis(jax.nn.logsumexp(scores, -1), parents, axis=1)
