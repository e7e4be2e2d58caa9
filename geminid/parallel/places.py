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
    """All places of a torus, int [chips axes], box by box of `count` chips; X counts fastest, of boxes and in each."""
    places = np.stack(np.unravel_index(np.arange(math.prod(sides)), sides[::-1]), -1)[:, ::-1]
    of_box, within = np.divmod(places, box(count, sides))
    return places[np.lexsort([*within.T, *of_box.T])]
