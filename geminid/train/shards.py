"""A step as three pure functions: gradients of a logical shard, their sum in shard order, the update.

Who computes a shard, and how many there are to compute them, changes nothing: the same M vectors of float32 are added
in the same order. Loss and gradients are those of the whole batch: each shard's are weighted by its loss weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from geminid.batches.packing import Batch
from geminid.config import StageConfig
from geminid.parallel.sharding import gathered_others, layers_as
from geminid.train.loop import State
from geminid.train.optimiser import make_optimiser
from geminid.train.params import params_of
from geminid.train.pretrain import Loss, Rate

BLOCKS, LANES = 32, 512  # a gradient is [BLOCKS, rows, LANES], padded with zeros: blocks are what slices exchange


@dataclass(frozen=True)
class Part:
    """What one logical shard gives to a step.

    gradient: float32 [BLOCKS, rows, LANES], of the sum of losses, not of their mean; scalars: float32 by name, of which
    "weight" is the sum of loss weights and the others are means under it; cursor: int64, where the shard reads next.
    """

    gradient: np.ndarray
    scalars: Mapping[str, np.float32]
    cursor: np.ndarray


@dataclass(frozen=True)
class ShardedTask:
    """The functions of a stage's step.

    first(params) -> the state that the stage starts from; grads(params, batch, key) -> (gradient [BLOCKS, rows, LANES],
    scalars); update(state, total, weight) -> state, where total is the sum of all shards' gradients and weight that of
    their weights. shapes: of the state's arrays.

    What these are made of, for a step in one program: moving(params) -> those that learn, layers in the dtype that they
    compute in: their gradients are no more exact; ready(moving, params) -> all, laid for use; summed(ready, batch, key)
    -> (sum of losses, scalars); apply(state, mean gradient of those that learn) -> state.
    """

    shapes: State
    moving: Callable[[Any], list[jax.Array]]
    ready: Callable[[Sequence[jax.Array], Any], Any]
    summed: Callable[[Any, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    apply: Callable[[State, Sequence[jax.Array]], State]
    first: Callable[[Any], State]
    grads: Callable[[Any, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    update: Callable[[State, np.ndarray, np.float32], State]


def make_sharded_task(
    module: nnx.Module, loss: Loss, config: StageConfig, rate_of: Rate = lambda _: 1.0, dtype: str = "float32"
) -> ShardedTask:
    """As `geminid.train.pretrain.make_task`, for a batch that comes in shards with "weights" and "answers".

    Of `module` only the structure counts: it may be one of `nnx.eval_shape`. dtype: of the products of a decoder's
    layers.
    """
    optimiser = make_optimiser(config.optimiser, config.steps, rate_of)
    graph, params = nnx.graphdef(module), params_of(module)
    learns = jax.tree_util.tree_map_with_path(lambda path, _: rate_of(jax.tree_util.keystr(path)) != 0, params)
    shapes = [leaf.shape for leaf in chosen(params, learns)]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()

    def ready(moving: Any, params: Any) -> Any:
        return gathered_others(filled(params, learns, moving))

    def summed(ready: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, metrics = loss(nnx.merge(graph, nnx.State(ready)), batch, key)
        weight = jnp.maximum(batch["weights"].reshape(-1)[batch["answers"]].sum(), 1e-6)
        return value * weight, {"weight": weight, "loss": value, **metrics}

    @jax.jit
    def grads(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        of = jax.grad(lambda moving: summed(ready(moving, params), batch, key), has_aux=True)
        gradient, scalars = of(chosen(params, learns))
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in gradient])
        return jnp.pad(flat, (0, -flat.size % (BLOCKS * LANES))).reshape(BLOCKS, -1, LANES), scalars

    @jax.jit
    def update(state: State, total: jax.Array, weight: jax.Array) -> State:
        pieces = jnp.split(total.reshape(-1)[: ends[-1]] / weight, ends[:-1])
        return apply(state, [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])

    def apply(state: State, mean: Sequence[jax.Array]) -> State:
        gradient = filled(jax.tree.map(jnp.zeros_like, state["params"]), learns, mean)
        updates, moments = optimiser.update(gradient, state["optimiser"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimiser": moments}

    def first(params: Any) -> State:
        return {"params": params, "optimiser": optimiser.init(params)}

    shapes_of_state = jax.eval_shape(first, params)

    def moving(params: Any) -> list[jax.Array]:
        return chosen(layers_as(dtype, params), learns)

    return ShardedTask(shapes_of_state, moving, ready, summed, apply, first, grads, update)


def chosen(params: Any, learns: Any) -> list[jax.Array]:
    """The parameters that learn, in the tree's order."""
    return [leaf for leaf, does in zip(jax.tree.leaves(params), jax.tree.leaves(learns), strict=True) if does]


def filled(params: Any, learns: Any, moving: Sequence[jax.Array]) -> Any:
    """`params` with those that learn exchanged for `moving`; no gradient reaches the others."""
    rest = iter(moving)
    return jax.tree.map(lambda leaf, does: next(rest) if does else jax.lax.stop_gradient(leaf), params, learns)


def step_key(seed: int, step: int, shard: int) -> jax.Array:
    """The randomness of a shard of a step, whoever computes it."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), shard)


def add(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in the order given, float32: ((g0 + g1) + g2) + ..."""
    total = np.array(gradients[0], np.float32)
    for gradient in gradients[1:]:
        np.add(total, gradient, out=total)
    return total


def add_scalars(parts: Sequence[Mapping[str, np.float32]]) -> dict[str, np.float32]:
    """Weighted means in shard order, and the sum of the weights."""
    weights = [part["weight"] for part in parts]
    weight = np.float32(0.0)
    for one in weights:
        weight = np.float32(weight + one)
    means = {"weight": weight}
    for name in parts[0]:
        if name != "weight":
            total = np.float32(0.0)
            for part in parts:
                total = np.float32(total + part[name] * part["weight"])
            means[name] = np.float32(total / weight)
    return means


def serial_step(task: ShardedTask) -> Callable[[State, Sequence[Batch], jax.Array], tuple[State, dict[str, Any]]]:
    """The step of a loop that computes all shards itself; bits as if several slices had shared them.

    The key of the step is folded with the shard's number.
    """

    def step(state: State, batches: Sequence[Batch], key: jax.Array) -> tuple[State, dict[str, Any]]:
        made = [task.grads(state["params"], b, jax.random.fold_in(key, m)) for m, b in enumerate(batches)]
        scalars = add_scalars([{k: np.float32(v) for k, v in s.items()} for _, s in made])
        total = add([np.asarray(gradient) for gradient, _ in made])
        metrics = {name: value for name, value in scalars.items() if name != "weight"}
        return task.update(state, total, scalars["weight"]), metrics

    return step
