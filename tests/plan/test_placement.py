"""Cubes that fail: the published table, simulation, and brute force on small pods."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.plan import availability, chips, placement, torus
from geminid.plan.requests import TopologyRequest
from geminid.plan.topology import plan_topology

V4 = chips.get("v4")
# host availability, slice -> goodput with optical switches and with static wiring, 64 cubes (Jouppi et al. 2023)
TABLE = [
    (0.990, "8x8x16", 0.747, 0.076),
    (0.995, "8x8x16", 0.751, 0.277),
    (0.999, "8x8x16", 0.840, 0.774),
    (0.990, "8x16x16", 0.500, 0.006),
    (0.995, "8x16x16", 0.503, 0.077),
    (0.999, "8x16x16", 0.679, 0.599),
    (0.990, "12x16x16", 0.742, 0.000),
    (0.995, "12x16x16", 0.750, 0.016),
    (0.999, "12x16x16", 0.750, 0.348),
]


def cubes(*sides: int) -> torus.Slice:
    return torus.Slice(V4, tuple(sorted(4 * side for side in sides)))


# --- goodput ---


@pytest.mark.parametrize(("host", "shape", "switched", "static"), TABLE)
def test_goodput_against_host_availability(host, shape, switched, static):
    answer = plan_topology(TopologyRequest(slice=shape, availability=host, trials=2000))
    assert answer["goodput"] == pytest.approx(switched, abs=0.005)
    assert answer["goodput_static"] == pytest.approx(static, abs=0.005)
    simulated = answer["simulated"]
    for name in ("goodput", "goodput_static"):
        # 4 standard errors; 1/2000 where no trial saw the event
        assert simulated[name] == pytest.approx(answer[name], abs=4 * simulated[f"{name}_se"] + 5e-4)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_goodput_is_the_sum_over_every_state_of_the_pod(num_cubes, slice_cubes, works):
    if slice_cubes > num_cubes:
        slice_cubes = num_cubes
    switched = static = 0.0
    for state in itertools.product((0, 1), repeat=num_cubes):
        probability = math.prod(works if up else 1 - works for up in state)
        switched += probability * (sum(state) // slice_cubes * slice_cubes / num_cubes)
        blocks = [state[i : i + slice_cubes] for i in range(0, num_cubes - slice_cubes + 1, slice_cubes)]
        static += probability * sum(map(all, blocks)) * slice_cubes / num_cubes
    assert availability.goodput(num_cubes, slice_cubes, works) == pytest.approx(switched)
    assert availability.goodput_static(num_cubes, slice_cubes, works) == pytest.approx(static)


def test_130_of_144_cubes_at_95_percent():
    answer = plan_topology(TopologyRequest(cubes=144, cube_availability=0.935))["guaranteed"]
    assert (answer["cubes"], answer["spares"]) == (130, 14)


@given(st.integers(1, 8), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_cubes_one_may_count_on_by_enumeration(num_cubes, works, confidence):
    at_least = np.zeros(num_cubes + 1)
    for state in itertools.product((0, 1), repeat=num_cubes):
        at_least[: sum(state) + 1] += math.prod(works if up else 1 - works for up in state)
    if np.abs(at_least - confidence).min() > 1e-9:
        expected = np.flatnonzero(at_least >= confidence).max()
        assert availability.guaranteed_cubes(num_cubes, works, confidence) == expected


# --- placement ---


SMALL_JOBS = st.lists(st.sampled_from([(1, 1, 1), (1, 1, 2), (1, 2, 2), (1, 1, 3), (2, 2, 2)]), min_size=1, max_size=3)


@settings(max_examples=40)
@given(SMALL_JOBS, st.sets(st.integers(0, 11), max_size=8))
def test_placements_are_the_best_there_are(shapes, failed):
    pod = placement.Pod((2, 2, 3), frozenset(failed))
    job = [cubes(*sides) for sides in shapes]
    sizes = [math.prod(sides) for sides in shapes]
    if sum(sizes) > pod.num_cubes:
        with pytest.raises(ValueError, match="the job needs"):
            placement.place(pod, job)
        return
    subsets = [
        [s for s, take in zip(sizes, chosen, strict=True) if take]
        for chosen in itertools.product((0, 1), repeat=len(job))
    ]
    best = max(sum(chosen) for chosen in subsets if sum(chosen) <= len(pod.working))
    check(pod, job, placement.place(pod, job), best)
    check(pod, job, placement.place_static(pod, job), best_static(pod, shapes))


def check(pod: placement.Pod, job: list[torus.Slice], found: placement.Placement, num_used: int) -> None:
    taken = [cube for each in found.slices for cube in each or ()]
    assert len(taken) == len(set(taken)) == num_used
    assert not pod.failed.intersection(taken)
    assert all(
        each is None or len(each) == shape.num_chips // 64 for each, shape in zip(found.slices, job, strict=True)
    )
    assert found.goodput(pod) == num_used / pod.num_cubes


def best_static(pod: placement.Pod, shapes: list[tuple[int, ...]]) -> int:
    """Most cubes at work, by trying every place of every slice, and of leaving it out."""

    def fill(taken: frozenset[int], left: list[tuple[int, ...]]) -> int:
        if not left:
            return 0
        best = fill(taken, left[1:])
        for sides in set(itertools.permutations(left[0])):
            if all(side <= whole for side, whole in zip(sides, pod.grid, strict=True)):
                for corner in itertools.product(*map(range, pod.grid)):
                    block = frozenset(
                        np.ravel_multi_index(np.add(corner, offset) % pod.grid, pod.grid).item()
                        for offset in np.ndindex(*sides)
                    )
                    if not block & taken:
                        best = max(best, len(block) + fill(taken | block, left[1:]))
        return best

    return fill(pod.failed, shapes)


def test_static_blocks_are_neighbours_in_the_order_of_the_shape():
    pod = placement.Pod((4, 4, 4), frozenset({0}))
    (block,) = placement.place_static(pod, [cubes(2, 2, 4)]).slices
    assert block is not None
    places = np.stack(np.unravel_index(block, pod.grid), axis=-1).reshape(2, 2, 4, 3)
    for axis in range(3):
        step = np.diff(places, axis=axis) % 4
        assert np.abs(step).sum(axis=-1).max() == np.abs(step).sum(axis=-1).min() == 1


def test_two_failed_cubes_stop_a_static_pod():
    # 48 cubes are three of four layers: both failures would have to lie in the fourth, and share no layer
    answer = plan_topology(TopologyRequest(job=("12x16x16",), failed="0,21"))
    assert (answer["goodput"], answer["goodput_static"]) == (0.75, 0)


@given(st.sampled_from(["4x4x4", "4x8x12", "4x4x8_twisted", "4x8x8_twisted", "8x8x16_twisted"]))
def test_circuits_close_every_axis(name):
    shape = torus.parse(V4, name)
    found = placement.circuits(shape, range(shape.num_chips // 64))
    upper = collections.Counter((axis, above) for axis, above, _ in found)
    lower = collections.Counter((axis, below) for axis, _, below in found)
    assert set(upper.values()) == set(lower.values()) == {1}
    assert len(upper) == len(lower) == 3 * shape.num_chips // 64
    # from chips' steps: the neighbour beyond the face is the same, by the lattice of chips
    sides = tuple(side // 4 for side in shape.shape)
    for axis, here, there in found:
        corner = 4 * np.array(np.unravel_index(here, sides))
        corner[axis] += 4
        while (corner >= shape.shape).any():
            corner -= torus.lattice(shape)[int(np.argmax(corner >= shape.shape))]
        corner %= shape.shape
        assert np.ravel_multi_index(tuple(corner // 4), sides) == there


def test_a_repair_takes_a_spare_and_touches_only_its_circuits():
    answer = plan_topology(TopologyRequest(job=("8x8x16",), failed="1", replace=5))
    repair = answer["repair"]
    assert repair["seconds"] == 10
    assert repair["spare"] not in {*answer["slices"][0]["cubes"], 1}
    assert repair["switch_circuits"] == 6 * 16  # three axes, both faces, 16 links a face
    pod, job = placement.Pod((4, 4, 4)), [cubes(2, 2, 4)]
    before = placement.place(pod, job)
    after = placement.repair(pod, job, before, 5).placement
    assert before.used - after.used == {5} and len(after.used - before.used) == 1


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 24), st.floats(0.5, 8))
def test_a_drain_is_what_its_rounds_add_up_to(slice_cubes, num_slices, at_once, hours):
    """Round by round: cubes of one slice after the other, none left out, and a slice pauses in each of its rounds."""
    job = [slice_cubes] * num_slices
    num_cubes = slice_cubes * num_slices + at_once
    lost = stopped = 0.0
    for size in job:
        for _ in range(0, size, at_once):
            lost += 10 * size
            stopped += hours * 3600 * size
    found = availability.drain(num_cubes, job, at_once, hours, 10.0)
    elapsed = math.ceil(num_cubes / at_once) * hours * 3600
    assert found.hours * 3600 == pytest.approx(elapsed)
    assert found.goodput == pytest.approx(1 - lost / elapsed / sum(job))
    assert found.goodput_static == pytest.approx(1 - stopped / elapsed / sum(job))


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (TopologyRequest(job=("16x16x16", "4x4x4")), "the job needs 65 cubes (4160 chips); the pod has 64 (4096"),
        (TopologyRequest(job=("2x2x4",)), "a slice 2x2x4 is no block of whole cubes"),
        (TopologyRequest(chip="v5e", job=("8x8",)), "a v5e pod has no cubes"),
        (TopologyRequest(job=("4x4x4",), failed="64"), "--failed has '64'; cubes are numbered 0 to 63"),
        (TopologyRequest(job=("4x4x4",), failed="-1"), "--failed has '-1'"),
        (TopologyRequest(failed="3"), "--failed is asked of a placed job; give --job"),
        (TopologyRequest(job=("4x4x4",), replace=9), "cube 9 is in no slice; in use are [0]"),
        (TopologyRequest(job=("16x16x16",), replace=9), "no spare for cube 9: all 64 working cubes are in use"),
        (TopologyRequest(job=("12x16x16",), drain=17), "draining 17 cubes at a time takes as many free ones; the"),
        (TopologyRequest(job=("16x16x16",), failed="1", drain=1), "nothing of the job is placed"),
        (TopologyRequest(job=("4x4x4",), drain=1, drain_hours=-1.0), "--drain-hours is -1"),
        (TopologyRequest(job=("4x4x4",), drain=1, rewire_s=-1.0), "--rewire-s is -1"),
        (TopologyRequest(slice="8x8x8", availability=-0.5), "--availability is -0.5; it must be above 0 and at most 1"),
        (TopologyRequest(slice="8x8x8", availability=math.nan), "--availability is nan"),
        (TopologyRequest(slice="8x8x8", availability=0.9, trials=1), "--trials is 1"),
        (TopologyRequest(slice="8x8x8", availability=0.9, cubes=4), "a slice 8x8x8 has 8 cubes; the pod has 4"),
        (TopologyRequest(slice="8x8x8", availability=0.9, cubes=0), "--cubes is 0"),
        (TopologyRequest(slice="2x2x2", availability=0.9), "is no block of whole cubes"),
        (TopologyRequest(cube_availability=1.5), "--cube-availability is 1.5"),
        (TopologyRequest(cube_availability=0.5, confidence=1.0), "--confidence is 1; it must be above 0 and below 1"),
    ],
)  # fmt: skip
def test_an_impossible_pod_is_one_line(request_, line):
    with pytest.raises(ValueError) as raised:
        plan_topology(request_)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
