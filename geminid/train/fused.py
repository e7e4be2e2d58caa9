"""The step of all logical shards as one program over a mesh: grads, reduce and update fused, partitioned by GSPMD.

    step = FusedStep(task, make_mesh({"slice": 2, "fsdp": 2, "tensor": 2}))
    state = step.place(task.first(params))                          # or step.state_shapes, to compile without data
    state, metrics = step(state, step.stack(batches), key)          # batches, key: as of `shards.serial_step`
    compiled = step.lower(step.batch_shapes(batch, M)).compile()    # batch: arrays of one shard, or their shapes

A batch is M logical shards, stacked: every array [M ...] of one shard's. M is a multiple of slice x fsdp, and each
device of these reads its own shards alone: a row's pictures and clips are in its shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from geminid.batches.packing import Batch
from geminid.parallel.sharding import SHARDS, batch_sharding, of_each_place, replicated, state_shardings
from geminid.train.loop import State
from geminid.train.shards import ShardedTask


class FusedStep:
    """(state, stacked batch, key) -> (state, metrics) over `mesh`; the state is donated.

    accumulate: parts of the batch that are done one after another, to need less memory; every place has an equal share
    of each. state_shapes, shardings: of the state's arrays. gradients(params, stacked batch, key) -> (sum over all
    shards of the gradients of what learns, scalars), as part of the step.
    """

    def __init__(self, task: ShardedTask, mesh: Mesh, accumulate: int = 1):
        self.task, self.mesh, self.accumulate = task, mesh, accumulate
        self.shardings = state_shardings(task.shapes, mesh)
        self.state_shapes = jax.tree.map(_placed, task.shapes, self.shardings)
        batches, alone = batch_sharding(mesh), replicated(mesh)
        self.gradients = jax.jit(self._gradients, in_shardings=(self.shardings["params"], batches, alone))
        self._step = jax.jit(
            self._fused,
            in_shardings=(self.shardings, batches, alone),
            out_shardings=(self.shardings, alone),
            donate_argnums=0,
        )

    def _gradients(self, params: Any, batches: Any, key: jax.Array) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        count = len(jax.tree.leaves(batches)[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
        moving = self.task.moving(params)

        def total(moving: Any, batches: Any, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            ready, axes = of_each_place(self.task.ready(moving, params), batches["weights"])
            of_place = jax.vmap(self.task.summed, (None, 0, 0))
            shards = jax.vmap(of_place, (axes, 0, 0), spmd_axis_name=SHARDS)
            sums, scalars = shards(ready, *jax.tree.map(self._by_place, (batches, keys)))
            return sums.sum(), jax.tree.map(jnp.ravel, scalars)

        def add(sum_so_far: list[jax.Array], part: Any) -> tuple[list[jax.Array], dict[str, jax.Array]]:
            gradient, scalars = jax.grad(total, has_aux=True)(moving, *part)
            return jax.tree.map(jnp.add, sum_so_far, gradient), scalars

        if self.accumulate == 1:
            gradient, scalars = jax.grad(total, has_aux=True)(moving, batches, keys)
        else:
            parts = jax.tree.map(self._in_parts, (batches, keys))
            zeros = [jnp.zeros_like(leaf, jnp.float32) for leaf in moving]
            gradient, scalars = jax.lax.scan(add, zeros, parts)
        weights = scalars["weight"]
        means = {name: (value * weights).sum() / weights.sum() for name, value in scalars.items() if name != "weight"}
        return gradient, {"weight": weights.sum(), **means}

    def _by_place(self, x: jax.Array) -> jax.Array:
        """[M ...] of logical shards -> [places M/places ...]."""
        return x.reshape(_places(self.mesh), -1, *x.shape[1:])

    def _in_parts(self, x: jax.Array) -> jax.Array:
        """[M ...] of logical shards -> [parts M/parts ...]; what a place holds stays there."""
        places = _places(self.mesh)
        split = x.reshape(places, self.accumulate, -1, *x.shape[1:])
        return jnp.moveaxis(split, 1, 0).reshape(self.accumulate, -1, *x.shape[1:])

    def _fused(self, state: State, batches: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        gradient, scalars = self._gradients(state["params"], batches, key)
        new = self.task.apply(state, [leaf.astype(jnp.float32) / scalars["weight"] for leaf in gradient])
        return new, {name: value for name, value in scalars.items() if name != "weight"}

    def __call__(self, state: State, batches: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        with jax.set_mesh(self.mesh):
            return self._step(state, batches, key)

    def lower(self, batch_shapes: Any) -> jax.stages.Lowered:
        """The step, ready to be compiled; nothing is put on a device."""
        with jax.set_mesh(self.mesh):
            return self._step.lower(self.state_shapes, batch_shapes, jax.eval_shape(jax.random.key, 0))

    def batch_shapes(self, batch: Any, count: int) -> Any:
        """Of a batch in `count` shards like `batch`. ValueError when the mesh cannot share them."""
        places = _places(self.mesh) * self.accumulate
        if count % places:
            parts = "" if self.accumulate == 1 else f" in {self.accumulate} parts"
            raise ValueError(
                f"{count} logical shards cannot be shared by the places of {' x '.join(SHARDS)}{parts};"
                f" set joint.shards to a multiple of {places}"
            )
        sharding = batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding), batch)

    def place(self, state: State) -> State:
        """A state on the mesh, from arrays that this process has whole."""
        return jax.tree.map(_from_whole, state, self.shardings)

    def stack(self, batches: Sequence[Batch]) -> dict[str, jax.Array]:
        """The batch of a step on the mesh, from its logical shards in order."""
        shapes = self.batch_shapes(batches[0], len(batches))
        return {name: _from_whole(np.stack([b[name] for b in batches]), shapes[name].sharding) for name in shapes}


def _places(mesh: Mesh) -> int:
    return int(np.prod([mesh.shape[axis] for axis in SHARDS]))


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _from_whole(x: Any, sharding: Any) -> jax.Array:
    """Each process puts its own pieces on its devices."""
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
