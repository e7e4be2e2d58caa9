"""What a recipe's values may be: the named recipes pass, and a value that cannot work is one line with its number."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid import recipes
from geminid.limits import RANGES, STAGE_RANGES, STAGES, field_at
from geminid.overrides import override

RECIPE = recipes.demo()
ALL_RANGES = RANGES | {f"{stage}.{name}": limits for stage in STAGES for name, limits in STAGE_RANGES.items()}


def refused(*assignments: str) -> str:
    """The line that a recipe with these fields changed is refused with."""
    with pytest.raises(ValueError) as error:
        override(RECIPE, assignments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", recipes.names())
def test_the_named_recipes_are_within_their_limits(name):
    recipe = recipes.get(name)
    for path, (low, high) in ALL_RANGES.items():
        value = field_at(recipe, path)
        assert value is None or low <= value <= high, path


def test_every_number_of_a_recipe_has_limits():
    def numbers(config, prefix=""):
        for field in dataclasses.fields(config):
            value, path = getattr(config, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                yield from numbers(value, f"{path}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield path

    free = {"seed", "data.seed"}
    unbounded = set(numbers(RECIPE)) - ALL_RANGES.keys() - free
    assert {path for path in unbounded if not path.startswith("joint.mixture.")} == set()


@given(st.sampled_from(sorted(ALL_RANGES)), st.sampled_from([0, 1]), st.integers(1, 1000))
def test_a_value_beyond_its_range_is_refused_with_its_number(path, end, distance):
    limit = ALL_RANGES[path][end]
    if math.isinf(limit):
        return
    value = limit + (distance if end else -distance)
    whole = not isinstance(field_at(RECIPE, path), float) and float(value).is_integer()  # a field of none may be whole
    value = int(value) if whole else float(value)
    message = refused(f"{path}={value}")
    assert f"'{path}'" in message
    assert f"{value:g}" in message
    assert f"{limit:g}" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_refused(value):
    for path in ("joint.stage.optimiser.learning_rate", "joint.code_weight"):
        assert f"'{path}'" in refused(f"{path}={value}")


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["codec.levels=8,1"], ["codec.levels", "[8, 1]", "at least 2"]),
        (["vision.stem_widths=()"], ["vision.stem_widths", "[]"]),
        (["joint.mixture.see=-1"], ["joint.mixture", "-1"]),
        ([f"joint.mixture.{task}=0" for task in vars(RECIPE.joint.mixture)], ["joint.mixture"]),
        (["data.languages=()"], ["data.languages"]),
        (["decoder.activation=relu"], ["decoder.activation", "relu", "gelu_tanh, silu"]),
        (["decoder.remat=some"], ["decoder.remat", "some", "dots"]),
        (["decoder.dtype=float8"], ["decoder.dtype", "float8", "bfloat16"]),
        (["data.held_out_style=crayon"], ["data.held_out_style", "crayon", "twemoji"]),
        (["decoder.num_heads=5"], ["decoder.num_heads", "5", "num_kv_heads", "3"]),
        (["decoder.head_dim=31"], ["decoder.head_dim", "31", "2"]),
        (["data.picture_size=34"], ["data.picture_size", "34", "codec.downsample", "4"]),
        (["data.picture_size=256", "joint.row_length=8192"], ["256", "64 codes a side", "32"]),
        (["joint.row_length=64"], ["joint.row_length", "64", "80"]),
        (["joint.stage.batch=1", "joint.answer_share=0.5"], ["joint.answer_share", "64", "69"]),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused_with_both(assignments, words):
    message = refused(*assignments)
    for word in words:
        assert word in message
