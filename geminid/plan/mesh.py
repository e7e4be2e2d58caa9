"""Lays a logical mesh on the axes of a slice, and ranks the ways by what the step's collectives then cost.

Each torus axis is cut into parts, one for each logical axis that has a share in it, from the inside out. A part that
is the whole axis is a ring. The innermost part of a cut axis is a line of neighbours. A part further out jumps over
the inner ones, so as many of its lines share the links; it is closed if it is the outermost part of a closed axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from geminid.plan.checks import number, split
from geminid.plan.collectives import KINDS, Ring, across_pods_s, rings, seconds
from geminid.plan.torus import Slice

MOST_LAYOUTS = 200_000  # a few seconds of search


@dataclass(frozen=True)
class Traffic:
    """A collective of every step: over which logical axis, of what kind, bytes of the whole array of its group."""

    axis: str
    kind: str
    num_bytes: float


@dataclass(frozen=True)
class Layout:
    """Parts of the torus and pods that each logical axis takes, and what the collectives of a step then cost."""

    parts: Mapping[str, tuple[Ring, ...]]
    pods: Mapping[str, int]
    seconds: float
    by_traffic: tuple[float, ...]

    def describe(self) -> dict[str, str]:
        """Such as {"data": "pods:2 X:16", "model": "Z:4/4"}: axis, size, and after `/` the jump between its chips."""
        return {
            name: " ".join(
                [f"pods:{self.pods[name]}"] * (self.pods[name] > 1)
                + [f"{ring.axis}:{ring.size}" + f"/{ring.hops}" * (ring.hops > 1) for ring in parts]
            )
            for name, parts in self.parts.items()
        }


def parse_mesh(texts: Sequence[str]) -> dict[str, int]:
    """`AXIS=SIZE` texts; ValueError for a size that is no whole number."""
    sizes: dict[str, int] = {}
    for text in texts:
        axis, size = split("--mesh", text, "=", "AXIS=SIZE")
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"--mesh {axis} is '{size}'; it must be a whole number of 1 or more")
        if axis in sizes:
            raise ValueError(f"--mesh {axis} is given twice; name each axis once")
        sizes[axis] = int(size)
    return sizes


def parse_traffic(texts: Sequence[str], sizes: Mapping[str, int]) -> list[Traffic]:
    """`AXIS:KIND:BYTES` texts; ValueError for an axis that the mesh lacks or an unknown kind."""
    found = []
    for text in texts:
        axis, kind, num_bytes = split("--traffic", text, ":", "AXIS:KIND:BYTES")
        if axis not in sizes:
            raise ValueError(f"--traffic {text} is over '{axis}'; the mesh has {', '.join(sizes)}")
        if kind not in KINDS:
            raise ValueError(f"--traffic {text} is of the kind '{kind}'; known: {', '.join(KINDS)}")
        found.append(Traffic(axis, kind, number(f"--traffic {axis}:{kind}", num_bytes)))
    return found


def layouts(torus: Slice, pods: int, sizes: Mapping[str, int], traffic: Sequence[Traffic]) -> list[Layout]:
    """Every way to lay the mesh on `pods` such slices, fastest first; ways that cost the same by symmetry once.

    Collectives are added up, as if none overlapped another or the compute. ValueError when the sizes do not fit.
    """
    product, chips = math.prod(sizes.values()), pods * torus.num_chips
    if product != chips:
        shown = " x ".join(map(str, sizes.values()))
        raise ValueError(
            f"the mesh has {shown} = {product} places; {pods} x {torus.name} has {chips} chips: make them equal"
        )
    if torus.twisted:
        raise ValueError(f"the axes of {torus.name} do not close by themselves; lay the mesh on the untwisted slice")
    found: dict[tuple[object, ...], Layout] = {}
    for count, (parts, across) in enumerate(_assignments(torus, pods, sizes)):
        if count == MOST_LAYOUTS:
            raise ValueError(f"more than {MOST_LAYOUTS} ways to lay {len(sizes)} axes on {torus.name}; use fewer axes")
        costs = tuple(_seconds(each, parts[each.axis], across[each.axis], torus) for each in traffic)
        key = tuple((across[name], *sorted((r.size, r.hops, r.wraps) for r in parts[name])) for name in sizes)
        found.setdefault(key, Layout(parts, across, sum(costs), costs))
    if not found:
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"{shown} cannot be cut from the sides of {torus.name}; use sizes that are products of their factors"
        )
    return sorted(found.values(), key=lambda layout: layout.seconds)


def _seconds(traffic: Traffic, parts: Sequence[Ring], pods: int, torus: Slice) -> float:
    """Inside the pods first, then each chip's share between them."""
    inside = seconds(traffic.kind, traffic.num_bytes / (pods if traffic.kind == "all-to-all" else 1), parts)
    if pods == 1:
        return inside
    return inside + across_pods_s(
        traffic.kind, traffic.num_bytes, pods, torus.chip, math.prod(ring.size for ring in parts)
    )


def _assignments(
    torus: Slice, pods: int, sizes: Mapping[str, int]
) -> Iterator[tuple[dict[str, tuple[Ring, ...]], dict[str, int]]]:
    sides = [pods, *torus.shape]
    for factors in _factorings(sides, list(sizes.values())):
        per_side = [list(_cuts(ring, factors[i + 1])) for i, ring in enumerate(rings(torus))]
        for cuts in itertools.product(*per_side):
            parts = {name: tuple(r for cut in cuts if (r := cut.get(i))) for i, name in enumerate(sizes)}
            yield parts, dict(zip(sizes, factors[0], strict=True))


def _factorings(sides: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Matrices of factors, a row a side: row i multiplies to sides[i], column j to sizes[j]."""
    if not sides:
        if all(size == 1 for size in sizes):
            yield ()
        return
    for row in _products(sides[0], sizes):
        left = [size // factor for size, factor in zip(sizes, row, strict=True)]
        for rest in _factorings(sides[1:], left):
            yield (row, *rest)


def _products(side: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Factors of `side`, one that divides each size."""
    if not sizes:
        if side == 1:
            yield ()
        return
    for factor in range(1, min(side, sizes[0]) + 1):
        if side % factor == 0 and sizes[0] % factor == 0:
            for rest in _products(side // factor, sizes[1:]):
                yield (factor, *rest)


def _cuts(ring: Ring, factors: Sequence[int]) -> Iterator[dict[int, Ring]]:
    """Every order, from the inside out, in which logical axes take their factors of one torus axis."""
    taking = [i for i, factor in enumerate(factors) if factor > 1]
    link = ring.bandwidth / (2 if ring.wraps else 1)
    for order in itertools.permutations(taking):
        parts, jump = {}, 1
        for i in order:
            closed = ring.wraps and jump * factors[i] == ring.size
            parts[i] = Ring(ring.axis, factors[i], link * (2 if closed else 1) / jump, jump, closed)
            jump *= factors[i]
        yield parts
