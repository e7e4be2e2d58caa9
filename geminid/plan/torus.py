"""Slices of TPUs as networks: which shapes exist, twisted or not, and what they carry.

Lengths are in chips, bandwidths in bytes/s. W1 is one link one way, N the number of chips. Sources: Jouppi et al. 2023
("TPU v4: An Optically Reconfigurable Supercomputer", sections 2.7 to 2.9); Camara et al. 2010 (twisted tori);
the Cloud TPU system pages.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from geminid.plan.chips import CUBE, Chip

AXES = "XYZ"
TWIST_SUFFIX = "_twisted"  # as in the names of Cloud TPU topologies
FLAT_SIDES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # v5e, v6e: Cloud TPU pages


@dataclass(frozen=True)
class Slice:
    """A block of chips of one job. shape: chips along each axis, shortest first."""

    chip: Chip
    shape: tuple[int, ...]
    twisted: bool = False

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape)) + TWIST_SUFFIX * self.twisted

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def is_cubes(self) -> bool:
        """Whether optical switches close its axes: it is made of whole cubes."""
        return self.chip.has_cubes and all(side % CUBE == 0 for side in self.shape)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes are closed to rings: all of whole cubes; on v5e and v6e those as long as the pod's."""
        if self.chip.has_cubes:
            return (self.is_cubes,) * len(self.shape)
        return tuple(side == whole for side, whole in zip(self.shape, self.chip.pod, strict=True))

    @property
    def num_links(self) -> int:
        """Links with both directions counted once."""
        return sum(
            self.num_chips if wrap else self.num_chips // side * (side - 1)
            for side, wrap in zip(self.shape, self.wraps, strict=True)
        )


def parse(chip: Chip, text: str) -> Slice:
    """`4x4x8` or `4x4x8_twisted` as a slice of this chip; ValueError says which shapes exist."""
    plain = text.removesuffix(TWIST_SUFFIX)
    try:
        shape = tuple(int(side) for side in plain.split("x"))
    except ValueError:
        raise ValueError(f"slice '{text}' is not of the form 4x4x8 or 4x4x8{TWIST_SUFFIX}") from None
    if len(shape) != len(chip.pod) or min(shape) < 1:
        raise ValueError(
            f"slice '{text}' has sides {shape}; a {chip.name} slice has {len(chip.pod)} sides of 1 or more"
        )
    shape = tuple(sorted(shape))
    num_chips = math.prod(shape)
    if num_chips > chip.pod_chips:
        raise ValueError(
            f"slice '{text}' has {num_chips} chips; a {chip.name} pod has {chip.pod_chips}; use several pods"
        )
    if not chip.has_cubes and shape not in FLAT_SIDES:
        known = ", ".join(f"{a}x{b}" for a, b in FLAT_SIDES)
        raise ValueError(f"there is no slice '{text}' of {chip.name}; there are {known}")
    if chip.has_cubes and max(shape) > CUBE and any(side % CUBE for side in shape):
        up = "x".join(str(-(-side // CUBE) * CUBE) for side in shape)
        raise ValueError(
            f"there is no slice '{text}': sides are all at most {CUBE}, or all multiples of {CUBE}; use {up}"
        )
    if num_chips > chip.largest_slice:
        raise ValueError(f"slice '{text}' has {num_chips} chips; the largest of {chip.name} has {chip.largest_slice}")
    found = Slice(chip, shape, text.endswith(TWIST_SUFFIX))
    if found.twisted and not can_twist(found):
        raise ValueError(f"slice '{text}' cannot be twisted; n x n x 2n and n x 2n x 2n of whole cubes can")
    return found


def can_twist(torus: Slice) -> bool:
    """n x n x 2n and n x 2n x 2n of whole cubes."""
    return (
        torus.is_cubes and torus.shape[2] == 2 * torus.shape[0] and torus.shape[1] in (torus.shape[0], torus.shape[2])
    )


def shapes(chip: Chip) -> list[Slice]:
    """Every slice shape of whole cubes, or of the pod's rectangle, by size; and below a cube those up to 4 a side."""
    if not chip.has_cubes:
        return [Slice(chip, sides) for sides in FLAT_SIDES]
    largest = chip.largest_slice // CUBE**3
    small = itertools.combinations_with_replacement(range(1, CUBE + 1), 3)
    cubes = (
        (CUBE * a, CUBE * b, CUBE * c)
        for a in range(1, largest + 1)
        for b in range(a, largest // a + 1)
        for c in range(b, largest // (a * b) + 1)
    )
    found = {Slice(chip, shape) for shape in itertools.chain(small, cubes)}
    return sorted(found, key=lambda torus: (torus.num_chips, torus.shape))


def lattice(torus: Slice) -> np.ndarray:
    """Steps that lead back to the start, int [3 3]: one row for the way once around each axis.

    A twist shifts who meets at the wrap: n x n x 2n by n along z on wrapping x or y, n x 2n x 2n by n along y and z on
    wrapping x (Camara et al. 2010, figures 3 and 4).
    """
    steps = np.diag(torus.shape)
    if torus.twisted:
        n, y, _ = torus.shape
        if y == n:
            steps[:2, 2] = n
        else:
            steps[0, 1:] = n
    return steps


def mean_distance(torus: Slice) -> float:
    """Mean number of links between two chips of a closed torus, itself included."""
    nodes = np.stack(np.meshgrid(*map(np.arange, torus.shape), indexing="ij"), axis=-1).reshape(-1, len(torus.shape))
    nearest = np.full(len(nodes), np.iinfo(np.int64).max)
    for rounds in itertools.product(range(-2, 2), repeat=len(torus.shape)):
        around = np.array(rounds) @ lattice(torus)
        nearest = np.minimum(nearest, np.abs(nodes + around).sum(axis=1))
    return float(nearest.mean())


def bisection_bandwidth(torus: Slice) -> float:
    """Bytes/s one way between the halves; inf for one chip.

    Untwisted: links cut across the longest axis, 2 (N / longest) W1 where it is closed. Twisted: what uniform
    all-to-all traffic makes of it. A chip's 6 links carry 6 W1 / (mean distance) of it, and half of all traffic
    crosses, so N / 4 as much; the same formula gives the cut of an untwisted torus' longest axis.
    """
    if torus.num_chips == 1:
        return math.inf
    if torus.twisted:
        num_links = 2 * len(torus.shape)
        return torus.num_chips / 4 * num_links * torus.chip.link_bandwidth / mean_distance(torus)
    return min(
        torus.num_chips / side * (2 if wrap else 1) * torus.chip.link_bandwidth
        for side, wrap in zip(torus.shape, torus.wraps, strict=True)
        if side > 1
    )


def all_reduce_bandwidth(torus: Slice) -> float:
    """Bytes/s that all links carry, each in both directions: what an all-reduce can keep busy."""
    return 2 * torus.num_links * torus.chip.link_bandwidth
