"""A slice that spans processes: to others one of them, the lead, is the slice; the rest compute with it.

The processes join one JAX runtime (`jax.distributed`) and lay the state over the devices of all of them; positions of a
row are split over them too. Whatever the lead's work is asked for is done in all of them at once, in the same order, as
one program over many processes demands. One that dies takes the others with it: a slice fails as a unit.

The lead has whole copies of the state as well, for digests, other slices and the disk.
"""

from __future__ import annotations

import socket
from typing import Any

import jax
import numpy as np
import ray

from geminid.parallel.sharding import make_mesh, replicated, state_shardings
from geminid.runtime.work import Job, JointWork, Leaves, warm_up
from geminid.train.shards import Part, step_key

REMEMBERED = 3  # states that all processes hold: the committed one, the next, and one to spare
JOINED_S = 300  # for all processes to be there


def join(address: str, count: int, rank: int) -> None:
    """Makes this process number `rank` of `count`; before JAX looks for devices. address: host:port of the first."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address, count, rank, initialization_timeout=JOINED_S, cluster_detection_method="deactivate"
    )


class SpannedWork(JointWork):
    """The joint stage over the devices of all processes. States are known by numbers, the same in each process."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._mesh = make_mesh({"context": jax.device_count()})
        self._everywhere = replicated(self._mesh)
        laid = state_shardings(self._task.shapes, self._mesh)
        self._laid = jax.tree.leaves(laid)
        self._whole = jax.jit(lambda tree: tree, out_shardings=self._everywhere)
        self._update = jax.jit(self._task.update, out_shardings=laid)
        self._states: dict[int, Leaves] = {}

    def _lay(self, x: Any, sharding: Any) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    def _tree_of(self, leaves: Leaves) -> Any:
        return jax.tree.unflatten(self._tree, leaves[:-1])

    def _remember(self, number: int, leaves: Leaves) -> Leaves:
        """Keeps a state; its arrays, whole, on this process's first device."""
        self._states[number] = leaves
        for old in sorted(self._states)[:-REMEMBERED]:
            del self._states[old]
        return [*(leaf.addressable_data(0) for leaf in self._whole(leaves[:-1])), leaves[-1]]

    def put(self, number: int, leaves: Leaves) -> Leaves:
        """Takes a state from whole arrays."""
        laid = [self._lay(leaf, sharding) for leaf, sharding in zip(leaves[:-1], self._laid, strict=True)]
        return self._remember(number, [*laid, leaves[-1]])

    def gradient_of(self, number: int, step: int, shard: int) -> Part:
        """As `gradient`, of a state that all processes have."""
        leaves = self._states[number]
        batch, cursor = self._batches.read(shard, leaves[-1][shard])
        key = jax.random.key_data(step_key(self.recipe.seed, step, shard))
        with jax.set_mesh(self._mesh):
            batch, key = jax.tree.map(lambda x: self._lay(x, self._everywhere), (batch, key))
            params = self._tree_of(leaves)["params"]
            made = self._whole(self._task.grads(params, batch, jax.random.wrap_key_data(key)))
        gradient, scalars = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), made)
        return Part(gradient, {k: np.float32(v) for k, v in sorted(scalars.items())}, cursor)

    def update_of(self, number: int, new: int, total: np.ndarray, weight: np.float32, cursors: np.ndarray) -> Leaves:
        """As `update`, of a state that all processes have; the new one is called `new`."""
        with jax.set_mesh(self._mesh):
            laid = [self._lay(x, self._everywhere) for x in (total, weight)]
            state = self._update(self._tree_of(self._states[number]), *laid)
        return self._remember(new, [*jax.tree.leaves(state), cursors])


class Follower:
    """Ray actor: one of the other processes of a slice."""

    def start(self, job: Job, address: str, count: int, rank: int, cores: tuple[int, ...]) -> None:
        """cores: on which this process computes; (): on all."""
        from geminid.runtime.cluster import pin, prepare

        pin(cores)
        prepare(bool(cores))
        join(address, count, rank)
        self._work = SpannedWork(job)

    def do(self, what: str, *args: Any) -> None:
        getattr(self._work, what)(*args)


class Lead:
    """See `geminid.runtime.work.Work`. others: handles of `Follower` actors, which end with this process."""

    def __init__(self, job: Job, others: list[Any]) -> None:
        self._own, self._others = SpannedWork(job), others
        self.names, self.recipe = self._own.names, self._own.recipe
        self._known: list[tuple[int, Leaves]] = []  # states that all processes have, as they were given out
        self._numbers = 0

    def _all(self, what: str, *args: Any) -> Any:
        """The same call in all processes; RayError when one of them has died."""
        asked = [other.do.remote(what, *args) for other in self._others]
        mine = getattr(self._own, what)(*(ray.get(arg) if isinstance(arg, ray.ObjectRef) else arg for arg in args))
        ray.get(asked)
        return mine

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _note(self, number: int, leaves: Leaves) -> Leaves:
        self._known = [*self._known, (number, leaves)][-REMEMBERED:]
        return leaves

    def _number(self, leaves: Leaves) -> int:
        """Of a state; one that is not known goes to all processes first."""
        for number, known in self._known:
            if known is leaves:
                return number
        number = self._next()
        self._all("put", number, ray.put([np.asarray(leaf) for leaf in leaves]))
        self._note(number, leaves)
        return number

    def first(self) -> Leaves:
        return self._own.first()

    def gradient(self, leaves: Leaves, step: int, shard: int) -> Part:
        return self._all("gradient_of", self._number(leaves), step, shard)

    def update(self, leaves: Leaves, total: np.ndarray, weight: np.float32, cursors: np.ndarray) -> Leaves:
        number, new = self._number(leaves), self._next()
        return self._note(new, self._all("update_of", number, new, ray.put(total), weight, cursors))

    def warm_up(self) -> float:
        return warm_up(self, self._own.zeros())

    def finish(self, leaves: Leaves) -> None:
        self._own.finish(leaves)


def lead(job: Job, count: int, cores: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> Lead:
    """Starts the other processes of a slice and joins them. options: Ray's, of each; cores: of each of the others."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        port = listening.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    actor: Any = ray.remote(Follower)
    others = [actor.options(**options).remote() for _ in range(count - 1)]
    started = [
        other.start.remote(job, address, count, rank, own)
        for rank, (other, own) in enumerate(zip(others, cores, strict=True), start=1)
    ]
    join(address, count, 0)
    made = Lead(job, others)
    ray.get(started)
    return made
