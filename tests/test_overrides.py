"""Overrides: text that says a value gives that value, in place, and nothing else changes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid import recipes
from geminid.overrides import override

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=",()[]"), max_size=9).map(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True)
class Inner:
    count: int = 1
    rate: float = 0.5
    label: str = "a"
    on: bool = False
    limit: int | None = None
    note: str | None = "n"
    mode: Literal["fast", "slow"] = "fast"
    widths: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    heads: int = 2
    width: int = 8

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    seed: int = 0


VALUES = st.one_of(
    st.tuples(st.just("count"), st.integers()),
    st.tuples(st.just("rate"), numbers),
    st.tuples(st.just("label"), words),
    st.tuples(st.just("on"), st.booleans()),
    st.tuples(st.just("limit"), st.none() | st.integers()),
    st.tuples(st.just("note"), st.none() | words.filter(lambda w: w.lower() != "none")),
    st.tuples(st.just("mode"), st.sampled_from(["fast", "slow"])),
    st.tuples(st.just("widths"), st.lists(st.integers()).map(tuple)),
    st.tuples(st.just("names"), st.lists(words.filter(bool)).map(tuple)),
    st.tuples(st.just("pair"), st.tuples(st.integers(), numbers)),
)


def spell(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(spell, value))
    return str(value)


@given(VALUES, st.sampled_from(["inner", "other"]), st.sampled_from(["", "()", "[]"]))
def test_a_spelt_value_is_read_back(change, group, brackets):
    name, value = change
    text = spell(value)
    if isinstance(value, tuple) and brackets:
        text = brackets[0] + text + brackets[1]
    expected = dataclasses.replace(Outer(), **{group: dataclasses.replace(Inner(), **{name: value})})
    got = override(Outer(), [f"{group}.{name}={text}"])
    assert got == expected
    assert type(getattr(getattr(got, group), name)) is type(value)


@given(
    st.lists(st.tuples(st.sampled_from(["inner.count", "other.heads", "seed"]), st.sampled_from([1, 2, 4])), max_size=6)
)
def test_many_are_applied_at_once_and_the_last_wins(changes):
    last = dict(changes)
    expected = Outer(
        inner=Inner(count=last.get("inner.count", 1)),
        other=Inner(heads=last.get("other.heads", 2)),
        seed=last.get("seed", 0),
    )
    assert override(Outer(), [f"{path}={value}" for path, value in changes]) == expected


def test_fields_that_depend_on_each_other_change_together():
    assert override(Outer(), ["inner.heads=3", "inner.width=9"]).inner.width == 9
    with pytest.raises(ValueError, match="width 8 is not divisible by 3 heads"):
        override(Outer(), ["inner.heads=3"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "'seed' is not of the form path.to.field=value"),
        ("=1", "'=1' is not of the form path.to.field=value"),
        ("sede=1", "unknown field 'sede' in the recipe; fields: inner, other, maybe, seed"),
        ("inner.cuont=1", "unknown field 'cuont' in 'inner'; fields: count, rate,"),
        ("inner..count=1", "unknown field '' in 'inner'"),
        ("inner=1", "'inner' is a group; set one of its fields: count,"),
        ("seed.x=1", "'seed' holds 0, which has no field 'x'"),
        ("maybe.count=1", "'maybe' holds None, which has no field 'count'"),
        ("seed=1.5", "'seed' is a whole number; '1.5' is not"),
        ("seed=", "'seed' is a whole number; '' is not"),
        ("inner.rate=nan", "'inner.rate' is a finite number; 'nan' is not"),
        ("inner.rate=1e999", "'inner.rate' is a finite number; '1e999' is not"),
        ("inner.on=1", "'inner.on' is true or false; '1' is not"),
        ("inner.limit=no", "'inner.limit' is a whole number or none; 'no' is not"),
        ("inner.mode=slower", "'inner.mode' is one of fast, slow; 'slower' is not"),
        ("inner.widths=1,,2", "'inner.widths' is a list (a,b,c) whose items are each a whole number; '1,,2' is not"),
        ("inner.pair=1", "'inner.pair' is a list of 2: a whole number, a finite number; '1' is not"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(assignment, message):
    with pytest.raises(ValueError) as caught:
        override(Outer(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", [["seed=1", "seed.x=2"], ["seed.x=2", "seed=1"]])
def test_a_field_and_a_field_inside_it_exclude_each_other(pair):
    with pytest.raises(ValueError, match="given"):
        override(Outer(), pair)


@pytest.mark.parametrize("name", recipes.names())
def test_every_scalar_field_of_every_recipe_can_be_set_to_what_it_is(name):
    recipe = recipes.get(name)

    def assignments(config: object, prefix: str) -> list[str]:
        lines = []
        for f in dataclasses.fields(config):  # type: ignore[arg-type]
            value = getattr(config, f.name)
            inside = dataclasses.is_dataclass(value)
            lines += assignments(value, f"{prefix}{f.name}.") if inside else [f"{prefix}{f.name}={spell(value)}"]
        return lines

    lines = assignments(recipe, "")
    assert len(lines) > 50
    assert override(recipe, lines) == recipe
