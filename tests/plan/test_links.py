"""Transfers that share links, against a clock that ticks; paths of permutations, against links counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.parallel.places import in_boxes
from geminid.plan import chips
from geminid.plan.links import ALL, Links, Machine

V4 = chips.get("v4")
CHIPS = 3
TICK = 2e-2


def machine(sides: tuple[int, ...], wraps: tuple[bool, ...], box: int = 1) -> Machine:
    return Machine(V4, {"all": int(np.prod(sides))}, in_boxes(box, sides), sides, wraps)


@st.composite
def transfers(draw):
    """(begin, seconds alone, links) in order of their beginnings."""
    chips_of = st.one_of(
        st.just(ALL), st.lists(st.booleans(), min_size=CHIPS, max_size=CHIPS).filter(any).map(np.array)
    )
    one = st.tuples(
        st.integers(0, 40), st.integers(1, 30), st.dictionaries(st.sampled_from("XYZ"), chips_of, min_size=1)
    )
    return sorted(draw(st.lists(one, min_size=1, max_size=5)), key=lambda each: each[0])


def ends_by_ticking(wanted: list) -> list[float]:
    left, ends, tick = [float(seconds) for _, seconds, _ in wanted], [0.0] * len(wanted), 0
    while any(each > 0 for each in left):
        now = tick * TICK
        under_way = [i for i, (begin, _, _) in enumerate(wanted) if begin <= now and left[i] > 0]
        users = dict.fromkeys(itertools.product("XYZ", range(CHIPS)), 0)
        held = {i: [(n, c) for n, on in wanted[i][2].items() for c in np.arange(CHIPS)[on]] for i in under_way}
        for link in itertools.chain(*held.values()):
            users[link] += 1
        for i in under_way:
            left[i] -= TICK / max(users[link] for link in held[i])
            ends[i] = now + TICK
        tick += 1
    return ends


@settings(max_examples=12)
@given(transfers())
def test_those_that_meet_have_equal_shares(wanted):
    links, ends = Links(CHIPS), [0.0] * len(wanted)
    under_way = []
    for i, (begin, seconds, held) in enumerate(wanted):
        links.pass_time(begin - links.now)
        under_way.append(links.begin(held, seconds, lambda at, i=i: ends.__setitem__(i, at)))
    for each in under_way:
        links.wait_for(each)
    assert ends == pytest.approx(ends_by_ticking(wanted), abs=0.25)


@pytest.mark.parametrize("now", [0.0, 5e4])
def test_they_end_however_late_it_is(now):
    """The clock's own steps are longer than a picosecond after 16,384 s."""
    rng, links = np.random.default_rng(0), Links(CHIPS)
    links.now = now
    for _ in range(300):
        seconds = rng.uniform(1e-6, 1e-3, 3)
        begin = links.now
        for each in [links.begin({"X": ALL}, taken, lambda at: None) for taken in seconds]:
            links.wait_for(each)
        assert links.now - begin == pytest.approx(seconds.sum(), abs=1e-9)


def test_nothing_to_send_is_done_at_once():
    links = Links(CHIPS)
    assert links.begin({}, 5.0, print).is_done
    links.wait_for(links.begin({"X": ALL}, 0.0, print))
    assert links.now == 0


@pytest.mark.parametrize("steps", [1, -1])
def test_a_ring_of_two_by_two_takes_one_link_of_each_chip_and_none_twice(steps):
    """Both ways round at once: each of the four links of the square carries one transfer in each direction."""
    on = machine((4, 4), (True, True), box=4)
    squares = np.arange(16).reshape(4, 4)
    pairs = np.stack([squares, np.roll(squares, -steps, 1)], -1).reshape(-1, 2)
    loads, hops = on.paths(pairs)
    assert hops == 1 and sum(int(load.sum()) for load in loads.values()) == 16
    assert all(load.max() == 1 for load in loads.values())
    seconds, held = on.permuted(pairs, 45e9)
    assert seconds == pytest.approx(1.0, rel=1e-3)
    other = np.stack([squares, np.roll(squares, steps, 1)], -1).reshape(-1, 2)
    _, back = on.permuted(other, 45e9)
    assert not any((held[name] & back[name]).any() for name in set(held) & set(back))


@settings(max_examples=40)
@given(st.permutations(range(12)), st.booleans(), st.booleans())
def test_a_permutation_goes_the_shorter_way_round_x_first(order, wraps_x, wraps_y):
    sides = (4, 3)
    on = machine(sides, (wraps_x, wraps_y))
    pairs = np.stack([np.arange(12), order], -1)
    loads, hops = on.paths(pairs)
    counted: dict[str, np.ndarray] = {}
    farthest = 0
    for source, target in pairs:
        at, steps = on.places[source].copy(), 0
        for axis, (name, side, wraps) in enumerate(zip("XY", sides, (wraps_x, wraps_y), strict=True)):
            way = on.places[target][axis] - at[axis]
            if wraps and abs(way) * 2 > side:
                way -= side * np.sign(way)
            if wraps and abs(way) * 2 == side:
                way = -abs(way)  # both are as short: down
            for _ in range(abs(way)):
                link = counted.setdefault(name + ("+" if way > 0 else "-"), np.zeros(12, int))
                link[at[0] * 3 + at[1]] += 1
                at[axis] = (at[axis] + np.sign(way)) % side
                steps += 1
        assert at.tolist() == on.places[target].tolist()
        farthest = max(farthest, steps)
    assert hops == farthest and set(loads) == set(counted)
    assert all((loads[name] == counted[name]).all() for name in loads)
