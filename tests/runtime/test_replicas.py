"""Copies and failure domains, against every combination of failures."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geminid.runtime.replicas import choose, hazards, survival

places = st.tuples(st.sampled_from("AB"), st.sampled_from("xyz"), st.sampled_from("12"))
chances = st.tuples(*[st.floats(0.0, 1.0)] * 3)


def brute_force(held, probabilities):
    """Over all combinations of failed domains."""
    domains = sorted({place[: depth + 1] for place in held for depth in range(3)})
    total = 0.0
    for states in itertools.product([False, True], repeat=len(domains)):
        failed = {domain for domain, down in zip(domains, states, strict=True) if down}
        weight = 1.0
        for domain, down in zip(domains, states, strict=True):
            chance = probabilities[len(domain) - 1]
            weight *= chance if down else 1 - chance
        if any(not failed & {place[:1], place[:2], place} for place in held):
            total += weight
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(places, min_size=1, max_size=4), chances)
def test_survival_is_that_of_all_combinations(held, probabilities):
    assert survival(held, probabilities) == pytest.approx(brute_force(held, probabilities), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(places, min_size=1, max_size=7, unique=True), st.integers(1, 3), st.tuples(*[st.floats(0.001, 0.4)] * 3)
)
def test_no_other_choice_survives_better(held, number, probabilities):
    first, candidates = held[0], {"/".join(place): place for place in held[1:]}
    chosen = choose(candidates, number, [first], probabilities)
    assert len(chosen) == min(number, len(candidates))
    best = max(survival([first, *others], probabilities) for others in itertools.combinations(held[1:], len(chosen)))
    assert survival([first, *(candidates[name] for name in chosen)], probabilities) == pytest.approx(best, abs=1e-12)


def test_hosts_without_larger_domains_fail_alone():
    assert survival([("1",), ("2",), ("3",)], (0.9, 0.9, 0.1)) == pytest.approx(1 - 0.1**3)
    assert survival([("1",), ("1",)], (0.9, 0.9, 0.1)) == pytest.approx(0.9)  # two copies on one host are as one
    assert survival([], (0.9, 0.9, 0.1)) == 0.0


def test_a_day_of_one_host():
    assert hazards(86_400)[-1] == pytest.approx(0.0008, rel=1e-3)
    assert hazards(0) == (0, 0, 0)


def test_a_place_with_too_many_levels_is_refused():
    with pytest.raises(ValueError, match="a/b/c/d has 4 levels; 1 to 3"):
        survival([("a", "b", "c", "d")], (0.1, 0.1, 0.1))
