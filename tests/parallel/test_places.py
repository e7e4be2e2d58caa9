"""Boxes of neighbours on a torus, against brute force."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from geminid.parallel.places import box, in_boxes
from geminid.parallel.sharding import make_mesh


@pytest.mark.parametrize(
    ("count", "sides", "expected"),
    [(1, (4, 4, 4), (1, 1, 1)), (2, (4, 4, 4), (2, 1, 1)), (4, (16, 16, 16), (2, 2, 1)), (8, (4, 4, 4), (2, 2, 2)),
     (16, (16, 16), (4, 4)), (16, (2, 16), (2, 8)), (3, (4, 4), (1, 1))],
)  # fmt: skip
def test_a_box_is_as_even_as_the_torus_lets_it(count, sides, expected):
    assert box(count, sides) == expected


@pytest.mark.parametrize(("count", "sides"), [(4, (4, 4, 8)), (8, (4, 4, 4)), (2, (4, 8)), (1, (2, 3, 4))])
def test_every_run_of_chips_is_a_box_and_every_chip_is_in_one(count, sides):
    places = in_boxes(count, sides)
    assert sorted(map(tuple, places.tolist())) == sorted(np.ndindex(*sides))
    for run in places.reshape(-1, count, len(sides)):
        extent = run.max(0) - run.min(0) + 1
        assert math.prod(extent) == count and tuple(extent) == box(count, sides)


def test_a_box_of_one_counts_x_fastest():
    assert in_boxes(1, (2, 2, 2)).tolist()[:3] == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


@dataclass(frozen=True)
class Device:
    coords: tuple[int, ...]
    slice_index: int


def test_the_devices_of_tensor_are_neighbours_whatever_their_order():
    places = [(x, y, z) for z in range(2) for y in range(4) for x in range(4)]
    devices = [Device(at, s) for s in (1, 0) for at in reversed(places)]
    mesh = make_mesh({"slice": 2, "fsdp": 8, "tensor": 4}, devices)
    assert [d.slice_index for d in mesh.devices.reshape(2, -1)[:, 0]] == [0, 1]
    for group in mesh.devices.reshape(-1, 4):
        assert np.ptp([d.coords for d in group], axis=0).tolist() == [1, 1, 0]
