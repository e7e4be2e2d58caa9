"""TPU networks against published figures, breadth-first search, linear programming and brute force."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from geminid.plan import chips, collectives, mesh, torus
from geminid.plan.requests import TopologyRequest
from geminid.plan.topology import plan_topology

V4 = chips.get("v4")
POD = torus.Slice(V4, V4.pod)


def hops(shape: torus.Slice) -> np.ndarray:
    """Links from the first chip to every chip, by breadth-first search over the wires."""
    sides, steps = shape.shape, torus.lattice(shape)

    def canonical(place: np.ndarray) -> tuple[int, ...]:
        while out := [(i, at // side) for i, (at, side) in enumerate(zip(place, sides, strict=True)) if at // side]:
            axis, rounds = out[0]
            place = place - rounds * steps[axis]
        return tuple(place.tolist())

    start = (0,) * len(sides)
    distance, queue = {start: 0}, collections.deque([start])
    while queue:
        place = queue.popleft()
        for step in (*np.eye(len(sides), dtype=int), *-np.eye(len(sides), dtype=int)):
            there = canonical(np.array(place) + step)
            if there not in distance:
                distance[there] = distance[place] + 1
                queue.append(there)
    return np.array(list(distance.values()))


# --- published figures ---


def test_a_v4_pod():
    assert V4.pod_chips == 4096 and math.prod(V4.cube_grid) == 64
    assert V4.pod_chips * V4.peak_flops == pytest.approx(1.1e18, rel=0.03)
    assert torus.all_reduce_bandwidth(POD) == pytest.approx(1.1e15, rel=0.02)
    assert torus.bisection_bandwidth(POD) == pytest.approx(24e12, rel=0.05)


def test_a_twisted_4x4x8_gains_70_percent():
    answer = plan_topology(TopologyRequest(slice="4x4x8_twisted"))
    assert 1 + answer["slice"]["twist_gain"] == pytest.approx(1.70, rel=0.05)


def test_the_books_all_gather_takes_46_us():
    # bf16[1024, 4096] over X and Y of v4
    answer = plan_topology(TopologyRequest(slice="4x4x4", bytes=2 * 1024 * 4096, over="XY"))
    assert answer["seconds"]["all-gather"] == pytest.approx(46e-6, rel=0.05)
    assert answer["seconds"]["all-reduce"] == pytest.approx(2 * 46e-6, rel=0.05)


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_the_table_of_chips(chip):
    published = {  # TFLOP/s, HBM GB/s, link GB/s one way, chips a pod
        "v4": (275, 1200, 45, 4096),
        "v5e": (197, 819, 45, 256),
        "v5p": (459, 2765, 90, 8960),
        "v6e": (918, 1638, 90, 256),
    }[chip]
    of = chips.get(chip)
    assert (of.peak_flops / 1e12, of.hbm_bandwidth / 1e9, of.link_bandwidth / 1e9, of.pod_chips) == published


# --- shapes ---


def test_shapes_keep_to_the_rule():
    names = {each.name for each in torus.shapes(V4)}
    assert {"1x2x2", "2x2x4", "4x4x4", "4x4x8", "8x8x16", "12x16x16", "4x4x256", "16x16x16"} <= names
    assert not {"5x5x5", "4x4x6", "2x2x8", "16x16x20"} & names
    for each in torus.shapes(V4):
        assert each.num_chips <= 4096 and list(each.shape) == sorted(each.shape)
        assert torus.parse(V4, each.name) == each
    assert max(each.num_chips for each in torus.shapes(chips.get("v5p"))) == 6144


def test_what_can_be_twisted():
    twistable = {each.name for each in torus.shapes(V4) if torus.can_twist(each)}
    assert twistable == {"4x4x8", "4x8x8", "8x8x16", "8x16x16", "12x12x24"}


def test_axes_close_where_switches_or_the_pod_close_them():
    assert torus.parse(V4, "4x4x8").wraps == (True,) * 3
    assert torus.parse(V4, "2x4x4").wraps == (False,) * 3
    assert torus.parse(chips.get("v5e"), "8x16").wraps == (False, True)


# --- networks ---


@pytest.mark.parametrize("name", ["4x4x4", "4x8x12", "4x4x8_twisted", "4x8x8_twisted", "8x8x16_twisted"])
def test_mean_distance_is_that_of_a_search(name):
    found = torus.parse(V4, name)
    distance = hops(found)
    assert len(distance) == found.num_chips
    assert torus.mean_distance(found) == pytest.approx(distance.mean(), abs=1e-12)


@given(st.tuples(*[st.integers(1, 3)] * 3))
def test_the_cut_of_a_torus_is_what_uniform_traffic_needs(cubes):
    """N / 4 times the all-to-all rate of a chip, which the longest axis limits: 2 W1 / (mean steps along it)."""
    found = torus.Slice(V4, tuple(sorted(4 * side for side in cubes)))
    longest = found.shape[-1]
    steps = np.minimum(np.arange(longest), longest - np.arange(longest)).mean()
    rate = 2 * V4.link_bandwidth / steps
    assert torus.bisection_bandwidth(found) == pytest.approx(found.num_chips / 4 * rate)


@pytest.mark.parametrize("name", ["4x4x8_twisted", "4x8x8_twisted"])
def test_the_best_routing_reaches_the_twisted_bandwidth(name):
    """Uniform all-to-all traffic as a linear program: which shortest ways to take so that no axis is overloaded."""
    found = torus.parse(V4, name)
    nodes = np.array(list(itertools.product(*map(range, found.shape))))
    rounds = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ torus.lattice(found)
    ways = nodes[:, None] - rounds
    length = np.abs(ways).sum(axis=2)
    target, way = np.nonzero(length == length.min(axis=1, keepdims=True))
    load = np.abs(ways[target, way]).T / 2 / len(nodes)  # of the two links of each axis, [3 ways]
    at_most = np.hstack([load, -np.ones((3, 1))])
    shares = np.hstack([(target == np.arange(len(nodes))[:, None]).astype(float), np.zeros((len(nodes), 1))])
    best = linprog([0] * len(target) + [1], A_ub=at_most, b_ub=[0] * 3, A_eq=shares, b_eq=[1] * len(nodes))
    rate = V4.link_bandwidth / best.fun
    assert torus.bisection_bandwidth(found) == pytest.approx(len(nodes) / 4 * rate)


def test_the_halves_of_a_small_mesh_are_cut_as_cheaply_as_can_be():
    found = torus.parse(V4, "2x2x4")
    nodes = list(itertools.product(*map(range, found.shape)))
    links = [
        (a, b) for a, b in itertools.combinations(nodes, 2) if sum(abs(i - j) for i, j in zip(a, b, strict=True)) == 1
    ]
    assert found.num_links == len(links)
    fewest = min(
        sum((a in half) != (b in half) for a, b in links)
        for half in map(set, itertools.combinations(nodes, len(nodes) // 2))
    )
    assert torus.bisection_bandwidth(found) == fewest * V4.link_bandwidth


# --- collectives ---


def test_an_all_gather_on_a_ring_moves_what_a_simulated_ring_moves():
    """Every chip passes on what it got, half of it each way round, until all have all."""
    size, block = 8, 1e6
    ring = collectives.rings(torus.parse(V4, "4x4x8"), "Z")
    rounds = size / 2  # blocks come from both sides
    assert collectives.seconds("all-gather", size * block, ring) == pytest.approx(rounds * block / V4.link_bandwidth)
    assert collectives.seconds("all-to-all", size * block, ring) * 4 == pytest.approx(
        collectives.seconds("all-gather", size * block, ring)
    )


def test_small_arrays_wait_for_the_farthest_chip_and_lines_take_twice_as_long():
    ring = collectives.rings(POD, "XY")
    assert collectives.seconds("reduce-scatter", 1.0, ring) == pytest.approx(16e-6)
    line, closed = collectives.Ring("X", 16, 45e9, 1, False), collectives.Ring("X", 16, 90e9, 1, True)
    assert collectives.seconds("all-gather", 1e9, [line]) == 2 * collectives.seconds("all-gather", 1e9, [closed])


@given(st.sampled_from(collectives.KINDS), st.floats(1, 1e12), st.sampled_from(["X", "XY", "XYZ"]))
def test_more_bytes_take_longer_and_the_time_adds_up(kind, num_bytes, axes):
    group = collectives.rings(POD, axes)
    once, twice = (collectives.seconds(kind, n, group) for n in (num_bytes, 2 * num_bytes))
    assert once <= twice <= 2 * once * (1 + 1e-12)


def test_an_all_to_all_on_a_slice_is_a_quarter_of_the_bytes_over_the_bisection():
    for name in ("16x16x16", "4x4x8", "4x4x8_twisted"):
        found = torus.parse(V4, name)
        seconds = collectives.on_slice(found, 1e12)["all-to-all"]
        assert seconds == pytest.approx(1e12 / 4 / torus.bisection_bandwidth(found))


def test_an_all_reduce_across_pods():
    # 2 pods: each host sends and gets its 1024th of the gradients once over 25 GB/s, in each of the two halves
    found = collectives.across_pods_s("all-reduce", 1e12, 2, V4, 4096)
    assert found == pytest.approx(2 * (1e12 / 1024 / 2) / 25e9)
    assert collectives.across_pods_s("all-gather", 1e12, 1, V4, 4096) == 0


# --- layouts ---


def test_layouts_are_all_that_there_are():
    """4x4x4 under axes of 16 and 4: the three whole-axis ways are one by symmetry, the others cut axes."""
    sizes = {"data": 16, "model": 4}
    traffic = [mesh.Traffic("data", "all-reduce", 1e9), mesh.Traffic("model", "all-gather", 1e9)]
    found = mesh.layouts(torus.parse(V4, "4x4x4"), 1, sizes, traffic)
    whole = [each for each in found if all(ring.wraps and ring.hops == 1 for ring in sum(each.parts.values(), ()))]
    assert len(whole) == 1
    assert whole[0].seconds == pytest.approx(2 * 1e9 / (2 * 90e9) + 1e9 / 90e9)
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)
    for each in found:
        for name, size in sizes.items():
            assert math.prod(ring.size for ring in each.parts[name]) * each.pods[name] == size


@given(st.integers(0, 6), st.floats(1e6, 1e10), st.floats(1e6, 1e10))
def test_the_first_layout_is_the_best_of_every_way_to_number_the_chips(exponent, data_bytes, model_bytes):
    """On 4x4x4 against brute force: which of the 6 bits of a chip's place belong to which logical axis."""
    sizes = {"data": 2**exponent, "model": 2 ** (6 - exponent)}
    traffic = [mesh.Traffic("data", "all-gather", data_bytes), mesh.Traffic("model", "all-gather", model_bytes)]
    best = mesh.layouts(torus.parse(V4, "4x4x4"), 1, sizes, traffic)[0]
    assert best.seconds == pytest.approx(min(brute_force(exponent, traffic)))


def brute_force(exponent: int, traffic: list[mesh.Traffic]) -> list[float]:
    """Cost of every way to deal the bits out, by what two or four chips along an axis of four can do."""
    ways = {  # jumps of the bits one logical axis has of a torus axis -> hops to the farthest chip, bytes/s
        (1, 2): (2, 90e9),  # the whole ring
        (1,): (2, 45e9),  # two neighbours on one link: a line, counted to its end
        (2,): (2, 45e9),  # two chips two apart, either way round; the two such pairs share the links
    }
    bits = list(itertools.product(range(3), (1, 2)))  # torus axis, jump
    costs = []
    for data in itertools.combinations(bits, exponent):
        model = [bit for bit in bits if bit not in data]
        total = 0.0
        for each, mine in zip(traffic, (data, model), strict=True):
            jumps = [tuple(jump for at, jump in mine if at == axis) for axis in range(3)]
            parts = [ways[each] for each in jumps if each]
            if parts:
                delay_s = 1e-6 * sum(hops for hops, _ in parts)
                total += max(delay_s, each.num_bytes / sum(bandwidth for _, bandwidth in parts))
        costs.append(total)
    return costs


def test_a_layout_across_pods_keeps_the_heavy_axis_inside():
    traffic = ("data:all-reduce:1e9", "model:all-gather:1e11")
    answer = plan_topology(
        TopologyRequest(slice="4x4x4", pods=2, mesh=("data=8", "model=16"), traffic=traffic, top=100)
    )
    assert answer["layouts"][0]["data"].startswith("pods:2")
    assert [each["seconds"] for each in answer["layouts"]] == sorted(each["seconds"] for each in answer["layouts"])


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (TopologyRequest(slice="5x5x5"), "'5x5x5': sides are all at most 4, or all multiples of 4; use 8x8x8"),
        (TopologyRequest(slice="16x16x32"), "slice '16x16x32' has 8192 chips; a v4 pod has 4096"),
        (TopologyRequest(chip="v5p", slice="16x20x28"), "has 8960 chips; the largest of v5p has 6144"),
        (TopologyRequest(slice="4x4"), "a v4 slice has 3 sides"),
        (TopologyRequest(slice="0x4x4"), "a v4 slice has 3 sides of 1 or more"),
        (TopologyRequest(slice="4x4xa"), "slice '4x4xa' is not of the form"),
        (TopologyRequest(slice="4x4x4_twisted"), "slice '4x4x4_twisted' cannot be twisted"),
        (TopologyRequest(chip="v5e", slice="4x16"), "there is no slice '4x16' of v5e; there are 1x1, 2x2"),
        (TopologyRequest(chip="v9"), "unknown chip 'v9'; known: v4, v5e"),
        (TopologyRequest(bytes=1e9), "--bytes is asked of a slice; give --slice"),
        (TopologyRequest(slice="4x4x4", bytes=-1.0), "--bytes is -1"),
        (TopologyRequest(slice="4x4x4", bytes=math.nan), "--bytes is nan"),
        (TopologyRequest(slice="4x4x4", bytes=1.0, over="XW"), "has axes XYZ; 'XW' must name some of them"),
        (TopologyRequest(slice="4x4x8_twisted", bytes=1.0, over="X"), "do not close by themselves"),
        (TopologyRequest(slice="4x4x4", pods=0), "--pods is 0"),
        (TopologyRequest(slice="4x4x4", mesh=("data=64",)), "a layout takes both --mesh"),
        (
            TopologyRequest(slice="4x4x4", mesh=("data=60",), traffic=("data:all-reduce:1",)),
            "the mesh has 60 = 60 places; 1 x 4x4x4 has 64 chips",
        ),
        (TopologyRequest(slice="4x4x4", mesh=("data=x",), traffic=("data:all-reduce:1",)), "--mesh data is 'x'"),
        (TopologyRequest(slice="4x4x4", mesh=("a=64",), traffic=("b:all-reduce:1",)), "is over 'b'; the mesh has a"),
        (TopologyRequest(slice="4x4x4", mesh=("a=64",), traffic=("a:gather:1",)), "is of the kind 'gather'; known"),
        (TopologyRequest(slice="4x4x4", mesh=("a=64",), traffic=("a:all-reduce:-1",)), "is -1; it must be above 0"),
        (TopologyRequest(slice="4x4x4", mesh=("a=64", "a=1"), traffic=("a:all-reduce:1",)), "--mesh a is given twice"),
    ],
)  # fmt: skip
def test_an_impossible_slice_is_one_line(request_, line):
    with pytest.raises(ValueError) as raised:
        plan_topology(request_)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
