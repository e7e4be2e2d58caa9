"""A mesh on a torus of chips, and what travels on its links at the same time.

A transfer holds links of some chips, or of all. Those that meet on a link have equal shares of its bandwidth, and each
goes as fast as the fullest of its links lets it. A permutation goes along X, then Y, then Z, the shorter way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from geminid.plan.chips import HOP_S, Chip
from geminid.plan.collectives import Ring
from geminid.plan.torus import AXES

ALL = slice(None)
Held = Mapping[str, Any]  # axis and direction, such as X+ -> the chips whose link it is: bool [chips], or ALL


@dataclass(frozen=True)
class Machine:
    """Where a module runs. mesh: its axes as the partitions count through them; places: int [partitions axes of the
    torus], the chip of each partition in its slice; sides, wraps: of the slice's torus."""

    chip: Chip
    mesh: Mapping[str, int]
    places: np.ndarray
    sides: tuple[int, ...]
    wraps: tuple[bool, ...]
    num_slices: int = 1

    def rings(self, group: np.ndarray) -> tuple[Ring, ...]:
        """A group's axes of the torus as rings or lines; members in no block of chips: one ring through them all."""
        places = self.places[group]
        axes = [sorted(set(places[:, i].tolist())) for i in range(places.shape[1])]
        if math.prod(map(len, axes)) != len(group):
            return (Ring(AXES[0], len(group), 2 * self.chip.link_bandwidth, 1, True),)
        found = []
        for name, at, side, wrap in zip(AXES, axes, self.sides, self.wraps, strict=False):
            if len(at) > 1:
                jump = max(b - a for a, b in zip(at, at[1:], strict=False))
                closed = wrap and jump * len(at) == side
                bandwidth = self.chip.link_bandwidth * (2 if closed else 1) / jump
                found.append(Ring(name, len(at), bandwidth, jump, closed))
        return tuple(found)

    def paths(self, pairs: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
        """Of transfers between pairs of partitions, int [pairs 2]: how many leave each chip by each of its links, such
        as {"X+": int [chips]}, and the links between the farthest pair."""
        at, left = self.places[pairs[:, 0]].copy(), self.places[pairs[:, 1]] - self.places[pairs[:, 0]]
        found: dict[str, np.ndarray] = {}
        farthest = np.zeros(len(pairs), int)
        for i, (name, side, wrap) in enumerate(zip(AXES, self.sides, self.wraps, strict=False)):
            if wrap:
                left[:, i] = (left[:, i] + side // 2) % side - side // 2
            farthest += abs(left[:, i])
            while left[:, i].any():
                for sign, direction in (("+", 1), ("-", -1)):
                    moves = left[:, i] * direction > 0
                    if moves.any():
                        load = found.setdefault(name + sign, np.zeros(math.prod(self.sides), int))
                        np.add.at(load, np.ravel_multi_index(tuple(at[moves].T), self.sides), 1)
                        at[moves, i] = (at[moves, i] + direction) % side
                        left[moves, i] -= direction
        return found, int(farthest.max(initial=0))

    def permuted(self, pairs: np.ndarray, num_bytes: float) -> tuple[float, Held]:
        """Seconds that it takes to send so many bytes between each of these pairs, and the links that it holds."""
        loads, hops = self.paths(pairs)
        most = max((int(load.max()) for load in loads.values()), default=0)
        duration = hops * HOP_S + num_bytes * most / self.chip.link_bandwidth
        return duration, {name: load > 0 for name, load in loads.items()}


@dataclass(eq=False)
class Travelling:
    """A transfer under way. left_s: how long it would take alone; ended: called with the time of its end."""

    links: Held
    left_s: float
    ended: Callable[[float], None]
    is_done: bool = False


class Links:
    """All links of a torus, and the time. num_chips: of one slice."""

    def __init__(self, num_chips: int):
        self.now = 0.0
        self.travelling: list[Travelling] = []
        self._num_chips = num_chips
        self._shares: list[int] | None = None  # of each that travels: by how many its fullest link is shared

    def begin(self, links: Held, seconds: float, ended: Callable[[float], None]) -> Travelling:
        new = Travelling(links, seconds, ended)
        if not links or seconds <= 0:
            new.is_done = True
            return new
        self.travelling.append(new)
        self._shares = None
        return new

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (first := self._first_end()) is not None and first <= until:
            self._go(first)
        self._go(until)

    def wait_for(self, transfer: Travelling) -> None:
        while not transfer.is_done:
            first = self._first_end()
            assert first is not None
            self._go(first)

    def _first_end(self) -> float | None:
        if self._shares is None:
            self._shares = self._count()
        ends = [self.now + each.left_s * share for each, share in zip(self.travelling, self._shares, strict=True)]
        return min(ends, default=None)

    def _go(self, until: float) -> None:
        """To a time that is not after the first end."""
        shares = self._shares if self._shares is not None else self._count()
        for each, share in zip(self.travelling, shares, strict=True):
            ends = self.now + each.left_s * share <= until
            each.left_s -= (until - self.now) / share
            if ends or each.left_s <= 1e-12:
                each.is_done = True
                each.ended(until)
        self.now = until
        self._forget()

    def travel(self, seconds: Mapping[Travelling, float]) -> None:
        """Some go on so far while no time passes; of what would have ended earlier the end is now."""
        for each, gone in seconds.items():
            each.left_s -= gone
            if each.left_s <= 1e-12 and not each.is_done:
                each.is_done = True
                each.ended(self.now)
        self._forget()

    def _forget(self) -> None:
        if any(each.is_done for each in self.travelling):
            self.travelling = [each for each in self.travelling if not each.is_done]
            self._shares = None

    def _count(self) -> list[int]:
        full: dict[str, np.ndarray] = {}
        for each in self.travelling:
            for name, chips in each.links.items():
                full.setdefault(name, np.zeros(self._num_chips, int))[chips] += 1
        return [max(int(full[name][chips].max()) for name, chips in each.links.items()) for each in self.travelling]
