"""Slices of whole cubes on a pod with failed cubes: by optical switches, or where static wiring lets them.

Cubes are numbered row by row over the pod's grid (X, Y, Z). With optical switches a slice takes any cubes. With static
wiring it takes a block of neighbours, in any orientation and at any offset, around the pod's edge too; its axes close
only where they span the whole pod.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from geminid.plan.chips import CUBE
from geminid.plan.torus import Slice, lattice

SWITCHES_PER_AXIS = CUBE * CUBE  # each face of a cube has 16 links, each to a switch of its own: 48 a cube


@dataclass(frozen=True)
class Pod:
    """Cubes along each axis, and the numbers of those that failed."""

    grid: tuple[int, int, int]
    failed: frozenset[int] = frozenset()

    @property
    def num_cubes(self) -> int:
        return math.prod(self.grid)

    @property
    def working(self) -> list[int]:
        return [cube for cube in range(self.num_cubes) if cube not in self.failed]


@dataclass(frozen=True)
class Placement:
    """The cubes of each slice of a job in the row-major order of its shape; None for a slice that found no place."""

    slices: tuple[tuple[int, ...] | None, ...]

    @property
    def used(self) -> frozenset[int]:
        return frozenset(cube for cubes in self.slices for cube in cubes or ())

    def goodput(self, pod: Pod) -> float:
        """Share of the pod's cubes that work in a slice."""
        return len(self.used) / pod.num_cubes


def cubes_of(torus: Slice) -> tuple[int, int, int]:
    """Cubes along each axis of a slice; ValueError below one cube."""
    if not torus.is_cubes:
        raise ValueError(
            f"a slice {torus.name} is no block of whole cubes; placement deals in 4x4x4 chips: use 4x4x4 or more"
        )
    x, y, z = (side // CUBE for side in torus.shape)
    return x, y, z


def check_fits(pod: Pod, job: Sequence[Slice]) -> None:
    """ValueError when a job has more cubes than the pod, all of them working."""
    needed = sum(math.prod(cubes_of(torus)) for torus in job)
    if needed > pod.num_cubes:
        raise ValueError(
            f"the job needs {needed} cubes ({needed * CUBE**3} chips); the pod has {pod.num_cubes} "
            f"({pod.num_cubes * CUBE**3} chips): ask for fewer slices, or use more pods"
        )


def place(pod: Pod, job: Sequence[Slice]) -> Placement:
    """With optical switches: as many cubes at work as can be, and the cubes by number."""
    check_fits(pod, job)
    sizes = [math.prod(cubes_of(torus)) for torus in job]
    chosen = _choose(np.array(sizes), np.array([sizes]), np.array([len(pod.working)]))
    free = iter(pod.working)
    return Placement(
        tuple(tuple(itertools.islice(free, size)) if i in chosen else None for i, size in enumerate(sizes))
    )


def place_static(pod: Pod, job: Sequence[Slice]) -> Placement:
    """With static wiring: as many cubes at work as can be, exactly, by integer programming."""
    check_fits(pod, job)
    places = [(i, cubes) for i, torus in enumerate(job) for cubes in _blocks(pod, cubes_of(torus))]
    if not places:
        return Placement((None,) * len(job))
    # rows: each cube is taken at most once, each slice placed at most once
    rows = [[*cubes, pod.num_cubes + i] for i, cubes in places]
    columns = np.repeat(np.arange(len(places)), [len(row) for row in rows])
    entries = (np.ones(len(columns)), (np.concatenate(rows), columns))
    once = csr_array(entries, shape=(pod.num_cubes + len(job), len(places)))
    chosen = _choose(np.array([len(cubes) for _, cubes in places]), once, np.ones(pod.num_cubes + len(job)))
    found = dict(places[column] for column in chosen)
    return Placement(tuple(found.get(i) for i in range(len(job))))


def _choose(values: np.ndarray, taken: object, room: np.ndarray) -> frozenset[int]:
    """Columns of the largest total value whose `taken` stays within `room`."""
    limits = LinearConstraint(taken, ub=room)
    found = milp(-values, constraints=limits, integrality=np.ones(len(values)), bounds=Bounds(0, 1))
    assert found.x is not None, found.message  # taking nothing is always allowed
    return frozenset(np.flatnonzero(found.x > 0.5).tolist())


def _blocks(pod: Pod, shape: tuple[int, int, int]) -> Iterator[tuple[int, ...]]:
    """Every block of working neighbours of that shape in any orientation, each set of cubes once."""
    seen = set()
    for order in itertools.permutations(range(3)):
        sides = [shape[axis] for axis in order]
        if any(side > whole for side, whole in zip(sides, pod.grid, strict=True)):
            continue
        for corner in np.ndindex(*pod.grid):
            ranges = [
                (start + np.arange(side)) % whole for start, side, whole in zip(corner, sides, pod.grid, strict=True)
            ]
            block = np.ravel_multi_index(np.ix_(*ranges), pod.grid)
            cubes = tuple(block.transpose(np.argsort(order)).reshape(-1).tolist())
            if not pod.failed.intersection(cubes) and (key := frozenset(cubes)) not in seen:
                seen.add(key)
                yield cubes


def circuits(torus: Slice, cubes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Optical circuits of a slice: (axis, cube whose upper face, cube whose lower face), 16 switches for each.

    Every cube stands once on either side of each axis. A twist shifts the cubes that meet at a wrap.
    """
    shape = cubes_of(torus)
    steps = lattice(torus) // CUBE
    found = []
    for place in np.ndindex(*shape):
        for axis in range(3):
            there = np.array(place)
            there[axis] += 1
            if there[axis] == shape[axis]:
                there = (there - steps[axis]) % shape
            found.append((axis, _at(cubes, place, shape), _at(cubes, there, shape)))
    return found


def _at(cubes: Sequence[int], place: Sequence[int] | np.ndarray, shape: tuple[int, int, int]) -> int:
    return cubes[int(np.ravel_multi_index(tuple(place), shape))]


@dataclass(frozen=True)
class Repair:
    """A failed cube of a slice exchanged for a spare one."""

    placement: Placement
    slice_index: int
    spare: int
    switch_circuits: int  # circuits set anew, over all switches


def repair(pod: Pod, job: Sequence[Slice], placement: Placement, cube: int) -> Repair:
    """Takes the first free working cube for `cube`, which fails; ValueError when none is free or it is not in use."""
    index = next((i for i, cubes in enumerate(placement.slices) if cubes and cube in cubes), None)
    if index is None:
        raise ValueError(f"cube {cube} is in no slice; in use are {sorted(placement.used)}")
    spares = [spare for spare in pod.working if spare not in placement.used]
    if not spares:
        raise ValueError(f"no spare for cube {cube}: all {len(pod.working)} working cubes are in use; keep some free")
    old = placement.slices[index]
    assert old is not None
    new = tuple(spares[0] if each == cube else each for each in old)
    touched = sum(spares[0] in ends for _, *ends in circuits(job[index], new))
    slices = (*placement.slices[:index], new, *placement.slices[index + 1 :])
    return Repair(replace(placement, slices=slices), index, spares[0], touched * SWITCHES_PER_AXIS)
