"""Who computes what, and who is believed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid.runtime.members import Members, Role
from geminid.runtime.messages import Deadlines, Finding, Hello, Policy
from geminid.runtime.verdicts import assign, judge, majority

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@given(st.integers(1, 40), NAMES, NAMES)
def test_shards_are_spread_evenly_and_stay_where_they_are(num_shards, before, after):
    old = assign(num_shards, before)
    new = assign(num_shards, after, old)
    for owners, slices in ((old, before), (new, after)):
        load = [Counter(owners)[name] for name in slices]
        assert sum(load) == len(owners) == num_shards
        assert max(load) - min(load) <= 1
    if set(after) <= set(before):  # only slices that are gone, and their shards
        assert all(b == a for b, a in zip(old, new, strict=True) if b in after)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [([1], 1), ([1, 1], 1), ([1, 2], None), ([1, 1, 2], 1), ([1, 2, 3], None), ([1, 1, 2, 2], None), ([2, 1, 1, 1], 1)],
)
def test_a_majority_is_more_than_half(votes, expected):
    assert majority({str(k): vote for k, vote in enumerate(votes)}) == expected


RIGHT, WRONG, OTHER = 1, 2, 3


@pytest.mark.parametrize(
    ("original", "opinions", "expected"),
    [
        (RIGHT, {"w": RIGHT}, Finding.CLEAN),  # an audit that agrees
        (RIGHT, {"o": RIGHT, "w": RIGHT}, Finding.CLEAN),  # a spike that is real
        (WRONG, {"w": RIGHT}, None),  # ask the owner
        (WRONG, {"o": RIGHT}, None),  # one's own word against itself
        (WRONG, {"o": RIGHT, "w": RIGHT}, Finding.TRANSIENT),
        (WRONG, {"o": WRONG, "w": RIGHT}, None),  # one word against another
        (WRONG, {"o": WRONG, "w": RIGHT, "x": RIGHT}, Finding.STICKY),
        (RIGHT, {"o": RIGHT, "w": WRONG, "x": RIGHT}, Finding.WITNESS),
        (RIGHT, {"o": WRONG, "w": RIGHT, "x": RIGHT}, Finding.STICKY),  # it repeated it wrongly
        (RIGHT, {"o": WRONG, "w": OTHER, "x": 4}, Finding.NONDETERMINISM),
    ],
)
def test_verdicts(original, opinions, expected):
    assert judge("o", original, opinions) is expected


def test_quarantine_is_of_the_device_and_survives_a_restart():
    members = Members(max_strikes=2)
    assert members.welcome(Hello("a.1", "a"))
    assert not members.welcome(Hello("a.1", "a"))  # said twice
    assert not members.strike("a.1")
    assert members.strike("a.1")
    assert not members.welcome(Hello("a.2", "a"))
    members.appoint("a.2", Role.ACTIVE)
    assert members.active == members.standbys == []
    assert members.repaired("a")
    assert members.standbys == ["a.1", "a.2"]
    assert not members.repaired("b")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"num_shards": 0}, "num_shards 0"),
        ({"min_slices": 3}, "min_slices 3 is more than the 2 slices wanted"),
        ({"deadlines": Deadlines(exchange_s=60.0)}, "exchange_s 60.0 must be less than update_s 60.0"),
    ],
)
def test_a_policy_that_no_run_could_follow(change, line):
    with pytest.raises(ValueError, match=line):
        Policy(**{"num_shards": 4, "num_steps": 10, "slices": 2} | change)
