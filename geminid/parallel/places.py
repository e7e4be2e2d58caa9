"""In which order the chips of a TPU slice are counted, so that an axis of a mesh has boxes of neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def box(count: int, sides: Sequence[int]) -> tuple[int, ...]:
    """Sides of the least elongated box of `count` chips that tiles a torus of these sides; (1, ...) if none does.

    A gather within a box uses the links of all its axes: 2 x 2 chips take half the time of four in a line.
    """
    choices = [[part for part in range(1, side + 1) if side % part == 0] for side in sides]
    boxes = [found for found in itertools.product(*choices) if math.prod(found) == count]
    return min(boxes, key=lambda found: (max(found), found[::-1]), default=(1,) * len(sides))


def in_boxes(count: int, sides: Sequence[int]) -> np.ndarray:
    """All places of a torus, int [chips axes], box by box of `count` chips, X fastest.

    In a box to and fro, so that each place is a neighbour of the one before it; 2 x 2 chips are a ring.
    """
    places = np.stack(np.unravel_index(np.arange(math.prod(sides)), sides[::-1]), -1)[:, ::-1]
    size = box(count, sides)
    of_box, within = np.divmod(places, size)
    rank = np.zeros(len(places), int)
    for steps, side in zip(within.T[::-1], size[::-1], strict=True):
        rank = rank * side + np.where(rank % 2, side - 1 - steps, steps)
    return places[np.lexsort([rank, *of_box.T])]
