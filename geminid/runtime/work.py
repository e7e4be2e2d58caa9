"""What a slice computes: the joint stage's three pure functions over a state of named arrays.

A state is a flat list of arrays with names: parameters, moments, and "cursors", int64 [M, ...], where each logical
shard reads next. So a process that only keeps copies needs no model to hold, digest and serve one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from geminid.batches.sharding import cursor_json
from geminid.config import Recipe
from geminid.train import joint
from geminid.train.params import params_of, save_params
from geminid.train.rundir import RunDir, write_json
from geminid.train.shards import Part, step_key
from geminid.train.stage import Workshop, initial_model, sharded_batches

Leaves = list[Any]  # arrays of a state, in the order of `Work.names`


class Work(Protocol):
    """What `Slice` needs to compute."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def first(self) -> Leaves: ...
    def gradient(self, leaves: Leaves, step: int, shard: int) -> Part: ...
    def update(self, leaves: Leaves, total: np.ndarray, weight: np.float32, cursors: np.ndarray) -> Leaves: ...


@dataclass(frozen=True)
class Job:
    """A run's joint stage, as plain values: what a slice's process is started with."""

    recipe: Recipe
    run_dir: Path
    dataset_path: Path


class JointWork:
    """The joint stage of a run whose encoders are trained."""

    def __init__(self, job: Job) -> None:
        self.recipe = job.recipe
        self.run = RunDir(job.run_dir)
        self._shop = Workshop(job.recipe, self.run, job.dataset_path, lambda done: None)
        size = self._shop.space.size
        model = nnx.eval_shape(lambda: joint.make_model(job.recipe, size))
        self._task = joint.sharded_joint_task(job.recipe, model)
        self._batches = sharded_batches(self._shop)
        named, self._tree = jax.tree_util.tree_flatten_with_path(self._task.shapes)
        self.names = (*(jax.tree_util.keystr(path) for path, _ in named), "cursors")

    def first(self) -> Leaves:
        """The state before the first step, from the recipe's seed and the trained encoders."""
        params = params_of(initial_model(self._shop))
        return [*jax.tree.leaves(self._task.first(params)), self._batches.first()]

    def gradient(self, leaves: Leaves, step: int, shard: int) -> Part:
        """Of a logical shard of the step after `step` steps."""
        batch, cursor = self._batches.read(shard, leaves[-1][shard])
        params = jax.tree.unflatten(self._tree, leaves[:-1])["params"]
        gradient, scalars = self._task.grads(params, batch, step_key(self.recipe.seed, step, shard))
        return Part(np.asarray(gradient), {k: np.float32(v) for k, v in sorted(scalars.items())}, cursor)

    def update(self, leaves: Leaves, total: np.ndarray, weight: np.float32, cursors: np.ndarray) -> Leaves:
        state = self._task.update(jax.tree.unflatten(self._tree, leaves[:-1]), total, weight)
        return [*jax.block_until_ready(jax.tree.leaves(state)), cursors]

    def zeros(self) -> Leaves:
        """A state to compile with."""
        leaves = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self._task.shapes)]
        return [*leaves, self._batches.first()]

    def warm_up(self) -> float:
        return warm_up(self, self.zeros())

    def finish(self, leaves: Leaves) -> None:
        """Writes what marks the stage as finished."""
        write_json(self.run.cursor("joint"), cursor_json(leaves[-1]))
        save_params(self.run.params("joint"), jax.tree.unflatten(self._tree, leaves[:-1])["params"])


def warm_up(work: Work, leaves: Leaves) -> float:
    """Compiles by computing on a state; seconds that one shard's gradients take then."""
    work.gradient(leaves, 0, 0)
    begun = time.perf_counter()
    part = work.gradient(leaves, 0, 0)
    took = time.perf_counter() - begun
    work.update(leaves, part.gradient, part.scalars["weight"], leaves[-1])
    return took


def metrics_of(scalars: Mapping[str, np.float32]) -> dict[str, float]:
    """What goes into the curve."""
    return {name: float(value) for name, value in scalars.items() if name != "weight"}


def shards_of(owners: Sequence[str], name: str) -> tuple[int, ...]:
    """The logical shards that a slice owns. owners: by shard."""
    return tuple(shard for shard, owner in enumerate(owners) if owner == name)
