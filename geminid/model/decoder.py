"""The decoder: one stack over one stream. Axis letters: see `geminid.model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from geminid.config import DecoderConfig
from geminid.model.blockwise import ATTENDED, Where, blockwise
from geminid.model.causal import causal
from geminid.model.flash import flash, suits
from geminid.model.layers import Attention, GatedMLP, RMSNorm, attend, entering, leaving, rotate, stacked, times, turns
from geminid.parallel.ring import in_order, in_turn
from geminid.parallel.sharding import constrain, gathered_layer, split_attention

ENTERED = "entered"  # a layer
# what the layers keep for the backward pass; the rest is computed again
_kept = jax.checkpoint_policies
POLICIES: dict[str, Any] = {
    "none": None,
    "full": None,
    "offload": _kept.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[ENTERED],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "attended": _kept.save_only_these_names(ATTENDED),
    "dots": _kept.save_from_both_policies(
        _kept.dots_with_no_batch_dims_saveable, _kept.save_only_these_names(ATTENDED)
    ),
}
Cache = tuple[Array, Array]  # keys and values of every layer, each [L B S K Dh]


def layer_windows(config: DecoderConfig, longest: int = 1 << 30) -> list[int]:
    """Window of each layer: `local_per_global` local layers, then a global one (Gemma 3)."""
    if config.window is None:
        return [longest] * config.num_layers
    period = config.local_per_global + 1
    return [longest if (i + 1) % period == 0 else config.window for i in range(config.num_layers)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotary:
    """How far a layer sees and how it turns: window int, theta float, stretch float or None; [L] or of one layer."""

    window: Array
    theta: Array
    stretch: Array | None

    @classmethod
    def of(cls, config: DecoderConfig) -> Rotary:
        windows = layer_windows(config)
        local = [w == config.window for w in windows]
        stretch = None
        if config.rope_stretch != 1.0:
            stretch = jnp.array([1.0 if is_local else config.rope_stretch for is_local in local])
        thetas = jnp.array([config.local_rope_theta if is_local else config.rope_theta for is_local in local])
        return cls(jnp.array(windows), thetas, stretch)


@jax.custom_vjp
def scored(hidden: Array, rows: Array) -> Array:
    """hidden [... D], rows [N D] -> float32 [... N]; the gradient's products are in hidden's dtype too."""
    return jnp.einsum("...d,vd->...v", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _scored_backward(kept: tuple[Array, Array], d_scores: Array) -> tuple[Array, Array]:
    hidden, rows = kept
    d_scores = d_scores.astype(hidden.dtype)
    d_hidden = jnp.einsum("...v,vd->...d", d_scores, rows.astype(hidden.dtype))
    d_rows = jnp.einsum("...v,...d->vd", d_scores, hidden, preferred_element_type=jnp.float32)
    return d_hidden, d_rows.astype(rows.dtype)


scored.defvjp(lambda hidden, rows: (scored(hidden, rows), (hidden, rows)), _scored_backward)


class DecoderBlock(nnx.Module):
    """Attention and gated MLP, norms before and, if asked, after (Gemma 2 and 3)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        epsilon = config.norm_epsilon
        self.norm_attention = RMSNorm(config.width, epsilon)
        self.attention = Attention(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            rngs=rngs,
            soft_cap=config.attention_soft_cap,
            norm_epsilon=epsilon,
        )
        self.norm_mlp = RMSNorm(config.width, epsilon)
        self.mlp = GatedMLP(config.width, config.mlp_width, rngs=rngs, activation=config.activation, is_cut=True)
        if config.post_norm:
            self.post_attention = RMSNorm(config.width, epsilon)
            self.post_mlp = RMSNorm(config.width, epsilon)

    def project(self, x: Array, positions: Array, rotary: Rotary) -> tuple[Array, Array, Array]:
        """Rotated, scaled queries [B T H Dh], rotated keys and values [B T K Dh] of x [B T D]."""
        attention, normed = self.attention, self.norm_attention(x)
        q = in_order([piece for (piece,) in entering(normed, [attention.q])])
        k, v = (constrain(times(normed, weight), None, "between") for weight in (attention.k, attention.v))
        q, k, v = attention.by_heads(q, k, v)
        scale = (self.config.query_scalar or self.config.head_dim) ** -0.5
        turned = turns(positions, self.config.head_dim, rotary.theta, rotary.stretch)
        sin, cos = (constrain(each, None, "positions") for each in turned)
        return rotate(q, sin, cos) * scale, rotate(k, sin, cos), v

    def finish(self, x: Array, q: Array, keys: Array, values: Array, mask: Array) -> Array:
        """The block's output [B T D]: attention over keys and values [B S K Dh] where mask bool [B T S], then MLP."""

        def dense(q: Array, k: Array, v: Array, mask: Array, _: None) -> Array:
            return attend(q, k, v, mask, self.attention.soft_cap)

        return self.add(x, split_attention(dense, q, keys, values, mask, None))

    def add(self, x: Array, mixed: Array) -> Array:
        """The block's output [B T D] from its input and what attention gave, [B T H Dh]."""
        mixed = leaving(in_turn(mixed.reshape(*x.shape[:2], -1)), self.attention.out)
        x = x + (self.post_attention(mixed) if self.config.post_norm else mixed)
        hidden = self.mlp(self.norm_mlp(x))
        return x + (self.post_mlp(hidden) if self.config.post_norm else hidden)

    def __call__(
        self, x: Array, positions: Array, mask: Array, distance: Array, rotary: Rotary, cache: Cache | None
    ) -> tuple[Array, Cache]:
        """x [B T D]; mask bool and distance int [B T S]; cache: rotated keys and values [B S-T K Dh]."""
        q, k, v = self.project(x, positions, rotary)
        keys, values = (
            (k, v) if cache is None else (jnp.concatenate([cache[0], k], 1), jnp.concatenate([cache[1], v], 1))
        )
        return self.finish(x, q, keys, values, mask & (distance < rotary.window)), (k, v)

    def packed(self, x: Array, where: Where, rotary: Rotary) -> Array:
        """x [B T D] of packed rows."""
        q, k, v = self.project(x, where.positions, rotary)

        return self.add(x, split_attention(self.see, q, k, v, where, where, rotary.window))

    def see(self, q: Array, k: Array, v: Array, query: Where, key: Where, window: Array) -> Array:
        """Attention of packed rows as the recipe asks for it, by the GPU's kernel where there is one: [B T H Dh]."""
        config, soft_cap = self.config, self.attention.soft_cap
        if config.attention == "dense":
            return causal(q, k, v, query, key, window, soft_cap)
        if not suits(q, k, soft_cap):
            return blockwise(q, k, v, query, key, window, soft_cap, config.attention_block)

        def within(window: int | None) -> Callable[..., Array]:
            return lambda q, k, v: flash(q, k, v, key.segments, window, config.attention_documents)

        if config.window is None:
            return within(None)(q, k, v)
        return jax.lax.cond(window == config.window, within(config.window), within(None), q, k, v)


class Decoder(nnx.Module):
    """Stacked blocks, tied embedding."""

    def __init__(self, config: DecoderConfig, num_ids: int, *, rngs: nnx.Rngs):
        self.config = config
        init = jax.nn.initializers.normal(config.width**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (num_ids, config.width), jnp.float32))
        self.layers = stacked(lambda rngs: DecoderBlock(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def embed(self, ids: Array) -> Array:
        """ids int [B T] -> [B T D] in the compute dtype."""
        table = constrain(self.embedding[...], None, "columns")  # each device looks its columns up for all positions
        x = constrain(jnp.take(table, constrain(ids, None), axis=0), None, None, "columns").astype(self.config.dtype)
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.scale_embedding else x

    def __call__(
        self, x: Array, positions: Array, mask: Array, key_positions: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """Hidden states after the last norm, and the new keys and values.

        x [B T D]; positions int [B T]; mask bool [B T S]; key_positions int [B S] (default: positions);
        cache: earlier keys and values, which come before the new ones among the S keys.
        """
        keys_at = positions if key_positions is None else key_positions
        distance = positions[:, :, None] - keys_at[:, None, :]

        def layer(block: DecoderBlock, x: Array, rotary: Rotary, cache: Cache | None) -> tuple[Array, Cache]:
            return block(x, positions, mask, distance, rotary, cache)

        return self._through(layer, x, cache)

    def packed(self, x: Array, positions: Array, segments: Array) -> Array:
        """Hidden states after the last norm of packed rows [B T D]; if attention is blockwise, in memory linear in T.

        positions, segments int [B T]: each position sees what `geminid.model.blockwise.sees` says.
        """
        where = Where.of(segments, positions)

        def layer(block: DecoderBlock, x: Array, rotary: Rotary, _: None) -> tuple[Array, None]:
            # whole: in pieces they would be gathered in every layer, beside every product
            return block.packed(x, jax.tree.map(lambda at: constrain(at, None, None), where), rotary), None

        return self._through(layer, x, None)[0]

    def _through(self, layer: Callable[..., tuple[Array, Any]], x: Array, cache: Cache | None) -> tuple[Array, Any]:
        """x through all layers and the last norm, and what each layer gives beside it, stacked."""
        config = self.config
        graph, weights = nnx.split(self.layers)

        def one(x: Array, inputs: tuple) -> tuple[Array, Any]:
            weights, rotary, layer_cache = inputs
            x = checkpoint_name(x, ENTERED)
            weights = gathered_layer(weights, config.dtype)
            return layer(nnx.merge(graph, weights), x, rotary, layer_cache)

        if config.remat not in POLICIES:
            raise ValueError(f"unknown remat policy '{config.remat}'; known: {', '.join(POLICIES)}")
        if config.remat != "none":
            one = jax.checkpoint(one, policy=POLICIES[config.remat])
        inputs = (weights, Rotary.of(config), cache)
        if config.scan_layers:
            x, new = jax.lax.scan(one, x, inputs)
        else:
            leaves, tree = jax.tree.flatten(inputs)
            made = []
            for of_layer in zip(*map(jnp.unstack, leaves), strict=True):
                x, given = one(x, tree.unflatten(of_layer))
                made.append(given)
            new = jax.tree.map(lambda *a: jnp.stack(a), *made)
        return self.norm(x), new

    def logits(self, hidden: Array) -> Array:
        """hidden [... D] -> float32 [... V]."""
        return self.logits_of(hidden, self.embedding[...])

    def logits_of(self, hidden: Array, rows: Array) -> Array:
        """hidden [... D] and some rows of the embedding [N D] -> float32 [... N]."""
        scores = scored(hidden, rows)
        cap = self.config.logit_soft_cap
        return scores if cap is None else cap * jnp.tanh(scores / cap)
