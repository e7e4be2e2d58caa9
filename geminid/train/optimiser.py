"""AdamW with linear warm-up and cosine decay (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from geminid.config import OptimiserConfig


def make_optimiser(
    config: OptimiserConfig, steps: int, rate_of: Callable[[str], float]
) -> optax.GradientTransformation:
    """The optimiser of a stage; `rate_of(path)` scales the learning rate of single parameters.

    Weight decay touches matrices only: two or more axes, and not the scales of norms, which stacked layers hold
    as [layers width].
    """
    warmup = min(config.warmup_steps, max(1, steps // 2))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), config.learning_rate * config.final_fraction
    )

    def factors(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: rate_of(jax.tree_util.keystr(path)), params)

    def scale_rates() -> optax.GradientTransformation:
        return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors(updates)))

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            config.beta1,
            config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(decays, params),
        ),
        scale_rates(),
    )


def decays(path: Any, param: Any) -> bool:
    """Whether weight decay applies to the parameter at `path`."""
    return param.ndim >= 2 and not jax.tree_util.keystr(path).endswith("['scale']")
