"""TPU generations: what one chip does and how a pod is built.

Source: the Cloud TPU system pages and the scaling book (Austin et al. 2025, "How to Scale Your Model", chapter 2; its
third problem has what a v6e's link to its host carries: taken for all).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CUBE = 4  # chips along the edge of a cube, the unit that optical switches wire (Jouppi et al. 2023, section 2)
HOSTS_PER_CUBE = 16
DCN_BANDWIDTH = 25e9  # bytes/s one way out of one host
HOST_BANDWIDTH = 15e9  # bytes/s between one chip and its host's memory, over PCIe
HOP_S = 1e-6  # latency of one link


@dataclass(frozen=True)
class Chip:
    """One chip and its pod. Bandwidths in bytes/s; `link_bandwidth` is of one link, one way."""

    name: str
    peak_flops: float  # FLOP/s, bfloat16
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    pod: tuple[int, ...]  # chips along each axis
    largest_slice: int  # chips of one job
    chips_per_host: int

    @property
    def pod_chips(self) -> int:
        return math.prod(self.pod)

    @property
    def has_cubes(self) -> bool:
        """Whether optical switches join cubes into three-dimensional tori."""
        return len(self.pod) == 3

    @property
    def cube_grid(self) -> tuple[int, int, int]:
        """Cubes along each axis of the whole pod; ValueError for a chip without cubes."""
        if not self.has_cubes:
            raise ValueError(
                f"a {self.name} pod has no cubes: its {self.pod_chips} chips are wired for good; use v4 or v5p"
            )
        x, y, z = (side // CUBE for side in self.pod)
        return x, y, z


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * 2**30, 1200e9, 45e9, (16, 16, 16), 4096, 4),
        Chip("v5e", 197e12, 16 * 2**30, 819e9, 45e9, (16, 16), 256, 8),
        Chip("v5p", 459e12, 95e9, 2765e9, 90e9, (16, 20, 28), 6144, 4),
        Chip("v6e", 918e12, 32e9, 1638e9, 90e9, (16, 16), 256, 8),
    )
}


def get(name: str) -> Chip:
    """The chip called `name`; ValueError lists the known ones."""
    if name not in CHIPS:
        raise ValueError(f"unknown chip '{name}'; known: {', '.join(CHIPS)}")
    return CHIPS[name]
