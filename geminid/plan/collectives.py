"""Times of collectives on rings and lines of chips, and across pods.

The cost model is the scaling book's (Austin et al. 2025, "How to Scale Your Model", chapter 3): a ring passes blocks
both ways at once; several axes work side by side. Sizes are of the whole array as its group of chips holds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geminid.plan.chips import DCN_BANDWIDTH, HOP_S, Chip
from geminid.plan.torus import AXES, Slice, bisection_bandwidth

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")


@dataclass(frozen=True)
class Ring:
    """A torus axis, or a part of one, as a collective sees it.

    size: chips. bandwidth: bytes/s that reach a chip, both directions together. hops: links between neighbours.
    """

    axis: str
    size: int
    bandwidth: float
    hops: int
    wraps: bool

    @property
    def delay_s(self) -> float:
        """To the chip farthest away."""
        return HOP_S * self.hops * (self.size / 2 if self.wraps else self.size)


def rings(torus: Slice, axes: str = "") -> tuple[Ring, ...]:
    """The axes named in `axes`, all unless given, as rings, or as lines where they are not closed."""
    known = AXES[: len(torus.shape)]
    chosen = axes.upper() or known
    if set(chosen) - set(known) or len(set(chosen)) != len(chosen):
        raise ValueError(f"a slice {torus.name} has axes {known}; '{axes}' must name some of them, each once")
    if torus.twisted and set(chosen) != set(known):
        raise ValueError(f"the axes of {torus.name} do not close by themselves; leave out --over, or the twist")
    return tuple(
        Ring(axis, side, torus.chip.link_bandwidth * (2 if wrap else 1), 1, wrap)
        for axis, side, wrap in zip(known, torus.shape, torus.wraps, strict=True)
        if axis in chosen
    )


def seconds(kind: str, num_bytes: float, group: Sequence[Ring]) -> float:
    """Time of one collective over all chips of a group. num_bytes: of the whole array.

    all-gather and reduce-scatter: the longer of the delay to the farthest chip and bytes / bandwidth. all-reduce: both.
    all-to-all: a quarter of the bytes cross the middle of each axis; on a ring a quarter of an all-gather's time.
    """
    group = [ring for ring in group if ring.size > 1]
    if not group:
        return 0.0
    delay_s = sum(ring.delay_s for ring in group)
    if kind == "all-to-all":
        num_chips = math.prod(ring.size for ring in group)
        return max(delay_s, *(num_bytes / 4 * ring.size / (num_chips * ring.bandwidth) for ring in group))
    gather_s = max(delay_s, num_bytes / sum(ring.bandwidth for ring in group))
    return 2 * gather_s if kind == "all-reduce" else gather_s


def on_slice(torus: Slice, num_bytes: float, axes: str = "") -> dict[str, float]:
    """Seconds of each kind of collective on a slice, over the axes named or all; a twist speeds up the all-to-all."""
    group = rings(torus, axes)
    times = {kind: seconds(kind, num_bytes, group) for kind in KINDS}
    if torus.twisted:
        times["all-to-all"] = num_bytes / 4 / bisection_bandwidth(torus)
    return times


def dcn_bandwidth(chip: Chip) -> float:
    """Bytes/s one way of one chip into the data-centre network."""
    return DCN_BANDWIDTH / chip.chips_per_host


def across_pods_s(kind: str, num_bytes: float, pods: int, chip: Chip, chips_a_pod: int) -> float:
    """The part of a collective that crosses the data-centre network; its latency is left out.

    num_bytes: of the whole array. Each chip of a pod deals with its share. A ring over P pods passes (P - 1) / P of
    the bytes once for an all-gather or reduce-scatter, twice for an all-reduce; an all-to-all sends each pod the
    (P - 1) / P of its P-th part.
    """
    rounds = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1 / pods}[kind]
    return rounds * (pods - 1) / pods * num_bytes / (chips_a_pod * dcn_bandwidth(chip))
