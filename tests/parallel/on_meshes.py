"""Run in processes of their own with several CPU devices: meshes against the single device. Prints JSON, a line a mesh.

python -m tests.parallel.on_meshes CASE...      cases: those of tests/parallel/test_meshes.py, as JSON

With PROCESS and PORT in the environment it is one of two processes that share the meshes' devices.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from geminid.parallel import sharding
from geminid.parallel.sharding import make_mesh
from geminid.train.fused import FusedStep
from geminid.train.shards import ShardedTask, add, add_scalars
from tests.parallel.collectives import found
from tests.parallel.small import batches_of, recipe_of, task_of

KEY = 3


def whole(x: jax.Array) -> np.ndarray:
    """An array, also where a part of it is another process's."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def gap(a: jax.Array, b: np.ndarray) -> float:
    return float(np.abs(whole(a) - b).max())


class Single:
    """The step of the single device: one logical shard after another, as `serial_step` does."""

    def __init__(self, decoder: dict[str, Any], changed: bool):
        recipe = recipe_of(**decoder)
        self.decoder, self.changed = decoder, changed
        self.batches, self.space = batches_of(recipe)
        self.task, self.params = task_of(recipe, self.space.size, changed)
        key = jax.random.key(KEY)
        made = [self.task.grads(self.params, b, jax.random.fold_in(key, m)) for m, b in enumerate(self.batches)]
        self.total = add([np.asarray(gradient) for gradient, _ in made])
        self.scalars = add_scalars([{k: np.float32(v) for k, v in s.items()} for _, s in made])

    def keeping(self, remat: str) -> ShardedTask:
        """Its task with another policy of what layers keep."""
        return task_of(recipe_of(**self.decoder | {"remat": remat}), self.space.size, self.changed)[0]

    def updated(self) -> Any:
        state = self.task.update(self.task.first(self.params), self.total, self.scalars["weight"])
        return jax.tree.map(np.asarray, state)


def on_mesh(single: Single, mesh: dict[str, int], update: bool, accumulate: int, remat: str | None) -> dict[str, Any]:
    """Figures of one mesh: differences of loss and gradients, collectives by axis, pieces on a device.

    remat: what layers keep on the mesh, where it is not what the single device's keep.
    """
    task, key = single.task if remat is None else single.keeping(remat), jax.random.key(KEY)
    step = FusedStep(task, make_mesh(mesh), accumulate)
    state, stacked = step.place(task.first(single.params)), step.stack(single.batches)
    multihost_utils.sync_global_devices("before compiling")
    with jax.set_mesh(step.mesh):
        compiled = step.gradients.lower(state["params"], stacked, key).compile()
        multihost_utils.sync_global_devices("compiled")  # Gloo waits half a minute for the other process, no longer
        gradient, scalars = compiled(state["params"], stacked, key)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(single.params)]
    assert len(names) == len(gradient)  # everything learns
    mean, at, errors = single.total.reshape(-1) / single.scalars["weight"], 0, {}
    for name, leaf in zip(names, gradient, strict=True):
        wanted = mean[at : at + leaf.size].reshape(leaf.shape)
        at += leaf.size
        errors[name] = [gap(leaf / scalars["weight"], wanted), float(np.abs(wanted).max())]
    layers = state["params"]["decoder"]["layers"]
    pieces = {"q": layers["attention"]["q"], "gate": layers["mlp"]["gate"]}
    answer = {
        "loss": [float(scalars["loss"]), float(single.scalars["loss"])],
        "errors": errors,
        "collectives": found(compiled.as_text(), step.mesh),
        "shares": {name: leaf.size / leaf.addressable_shards[0].data.size for name, leaf in pieces.items()},
    }
    if update:
        new, _ = step(state, stacked, key)
        gaps = jax.tree.map(gap, new, single.updated())
        moved = jax.tree.map(gap, new["params"], single.params)
        answer |= {"update": max(jax.tree.leaves(gaps)), "moved": min(jax.tree.leaves(moved))}
    return answer


def main() -> None:
    sharding.PIECE = 1  # so that arrays as small as these are cut
    if "PROCESS" in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{os.environ['PORT']}", 2, int(os.environ["PROCESS"]))
        multihost_utils.sync_global_devices("begun")
    singles: dict[str, Single] = {}
    for text in sys.argv[1:]:
        case = json.loads(text)
        name = json.dumps([case["decoder"], case["update"]], sort_keys=True)
        if name not in singles:
            singles[name] = Single(case["decoder"], changed=case["update"])
        how = (case["mesh"], case["update"], case["accumulate"], case["remat"])
        print(json.dumps(on_mesh(singles[name], *how)), flush=True)


if __name__ == "__main__":
    main()
