"""Muon for matrices, or AdamW if asked, AdamW for the rest, with linear warm-up and cosine decay.

Muon (Jordan et al. 2024) steps along the nearest orthogonal matrix to the momentum; its steps are scaled as in Liu
et al. 2025 (arXiv 2502.16982) to the size of Adam's, so that both take the same learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers
from optax.contrib._muon import orthogonalize_via_newton_schulz

from geminid.config import OptimiserConfig
from geminid.parallel.sharding import is_stacked_block, where_layers_are_whole

NEWTON_SCHULZ, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024; optax loops over a coefficient each
STEP_RMS = 0.2  # of Adam's steps, Liu et al. 2025, section 2.2
# their rows are ids, places or taps: there is no map to orthogonalise
TABLES = ("embedding", "words", "caption", "depthwise", "rows", "columns")


def make_optimiser(
    config: OptimiserConfig, steps: int, rate_of: Callable[[str], float]
) -> optax.GradientTransformation:
    """The optimiser of a stage; `rate_of(path)` scales the learning rate of single parameters, 0 holds them.

    Weight decay touches matrices and nothing else.
    """
    warmup = min(config.warmup_steps, max(1, steps // 2))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), config.learning_rate * config.final_fraction
    )

    def rates(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: rate_of(jax.tree_util.keystr(path)), params)

    def kinds(params: Any) -> Any:
        return jax.tree.map(lambda rate: "learns" if rate else "held", rates(params))

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda axes: axes is not None, matrices(params), is_leaf=is_axes)

    if config.matrices == "adamw":
        move = optax.adamw(schedule, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decayed)
    else:
        along = optax.chain(
            momentum(config.momentum),
            orthogonal(config.scan_muon, config.muon_dtype),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
        others = optax.adamw(schedule, config.beta1, config.beta2, weight_decay=0.0, nesterov=True)
        move = optax.partition({True: along, False: others}, decayed)
    learn = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        move,
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates(updates))),
    )
    return optax.partition({"learns": learn, "held": optax.set_to_zero()}, kinds)


class Momentum(NamedTuple):
    """Steps done, int32, and the mean gradients of late."""

    count: Any
    mean: Any


def momentum(beta: float) -> optax.GradientTransformation:
    """Nesterov's, of gradients whose mean is corrected for its beginning at 0 (Dozat 2016), as in optax's Muon."""

    def init(params: Any) -> Momentum:
        return Momentum(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Momentum]:
        mean, count = optax.tree.update_moment(updates, state.mean, beta, 1), optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mean, beta, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, beta, count)
        return jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now), Momentum(count, mean)

    return optax.GradientTransformation(init, update)


def orthogonal(scan: bool, dtype: str = "float32") -> optax.GradientTransformation:
    """The nearest orthogonal matrix of each, times what makes its entries as large as Adam's steps.

    Of the decoder's matrices one is done after another: each takes as much memory as the gradients of many.
    """
    coefficients = np.asarray((NEWTON_SCHULZ,) * ROUNDS if scan else NEWTON_SCHULZ, np.float32)

    def update(updates: Any, _: Any = None) -> Any:
        done: Array | None = None

        def one(path: Any, x: Array, axes: MuonDimensionNumbers) -> Array:
            nonlocal done
            fan_in, fan_out = (math.prod(x.shape[axis] for axis in side) for side in axes)  # type: ignore[not-iterable]

            def step(x: Array) -> Array:
                nearest = orthogonalize_via_newton_schulz(
                    x.astype(dtype), jnp.asarray(coefficients), ROUNDS, dimension_numbers=axes
                )
                return jnp.sqrt(jnp.maximum(fan_in, fan_out)) * STEP_RMS * nearest.astype(x.dtype)

            x, done = where_layers_are_whole(step, path, x, done)
            return x

        return jax.tree_util.tree_map_with_path(one, updates, matrices(updates))

    return optax.stateless(update)


def is_axes(leaf: Any) -> bool:
    """Whether this is a leaf of what `matrices` gives."""
    return leaf is None or isinstance(leaf, MuonDimensionNumbers)


def matrices(params: Any) -> Any:
    """For each parameter the axes of the matrix it is, or None where it is none.

    The layers of the decoder are stacked, [layers in out], as many blocks of an encoder are; kernels of convolutions
    are [places... in out].
    """

    def axes(path: Any, x: jax.Array) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        stacked = int("['layers']" in name or is_stacked_block(path))
        if x.ndim - stacked < 2 or name.endswith(tuple(f"['{table}']" for table in TABLES)):
            return None
        return MuonDimensionNumbers(tuple(range(stacked, x.ndim - 1)), (x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)
