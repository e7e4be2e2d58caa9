"""Muon for matrices, or AdamW if asked, AdamW for the rest, with linear warm-up and cosine decay.

Muon (Jordan et al. 2024) steps along the nearest orthogonal matrix to the momentum; its steps are scaled as in Liu
et al. 2025 (arXiv 2502.16982) to the size of Adam's, so that both take the same learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from geminid.config import OptimiserConfig
from geminid.parallel.sharding import is_stacked_block

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
        move = muon(
            schedule,
            beta=config.momentum,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=matrices,
            ns_coeffs=(NEWTON_SCHULZ,) * ROUNDS if config.scan_muon else NEWTON_SCHULZ,
            ns_steps=ROUNDS,
            consistent_rms=STEP_RMS,
        )
    learn = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        move,
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates(updates))),
    )
    return optax.partition({"learns": learn, "held": optax.set_to_zero()}, kinds)


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
