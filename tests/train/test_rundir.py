"""Whose run a directory holds, for every field of the recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from geminid import recipes
from geminid.config import Recipe, canonical_json, recipe_from_json
from geminid.train.rundir import RunDir, read_json, write_json


def others(value: object) -> tuple[object, ...]:
    """Values of the same kind that differ: a recipe refuses some of them."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return value + 1, 2 * value, value // 2
    if isinstance(value, float):
        return value + 0.1, value / 2
    if isinstance(value, str):
        return value + "x", "noto", "silu", "dots", "bfloat16", "adamw", "blockwise"
    if value is None:
        return (3,)
    assert isinstance(value, tuple), value
    return (value[:-1],)


def variants(config: object, whole: Callable[[object], object]) -> list[tuple[str, object]]:
    """(path, recipe with that one field changed) for every field, also inside groups; whole(config): the recipe."""
    found = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)

        def changed(new: object, name: str = field.name) -> object:
            return whole(dataclasses.replace(config, **{name: new}))  # type: ignore[type-var]

        if dataclasses.is_dataclass(value):
            found += [(f"{field.name}.{path}", recipe) for path, recipe in variants(value, changed)]
        else:
            found.append((field.name, first_allowed(changed, others(value))))
    return found


def first_allowed(changed: Callable[[object], object], values: tuple[object, ...]) -> object:
    for value in values[:-1]:
        with contextlib.suppress(ValueError):
            return changed(value)
    return changed(values[-1])


VARIANTS = variants(recipes.demo(), lambda recipe: recipe)


def test_every_field_changes_the_fingerprint():
    prints = {recipe.fingerprint() for _, recipe in VARIANTS}
    assert len(prints) == len(VARIANTS) > 60
    assert recipes.demo().fingerprint() not in prints
    assert recipes.demo().fingerprint() == recipes.demo().fingerprint()
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in prints)


def test_a_recipe_survives_json():
    for _, recipe in VARIANTS:
        back = recipe_from_json(json.loads(canonical_json(recipe)))
        assert back == recipe
        assert back.fingerprint() == recipe.fingerprint()


def test_a_directory_is_claimed_once_and_for_all(tmp_path):
    run = RunDir(tmp_path / "runs" / "a")
    run.claim(recipes.demo())
    (run.path / "stages").mkdir()
    before = (run.path / "recipe.json").read_bytes()
    run.claim(recipes.demo())
    assert run.recipe() == recipes.demo()
    for _, recipe in VARIANTS:
        with pytest.raises(ValueError, match="give another --run-dir") as caught:
            run.claim(recipe)
        assert recipe.fingerprint() in str(caught.value) and recipes.demo().fingerprint() in str(caught.value)
    assert (run.path / "recipe.json").read_bytes() == before
    assert sorted(path.name for path in run.path.iterdir()) == ["recipe.json", "stages"]


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        RunDir(tmp_path).claim(recipes.demo())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_empty_directory_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunDir(tmp_path).recipe()
    RunDir(tmp_path).claim(recipes.demo())
    assert isinstance(RunDir(tmp_path).recipe(), Recipe)


@pytest.mark.parametrize("content", ["", "{", '{"name": "demo"}', '{"nmae": "demo"}', "[]", '{"data": 3}'])
def test_a_broken_recipe_is_one_clear_line(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match="is broken or of another version") as caught:
        RunDir(tmp_path).recipe()
    assert "\n" not in str(caught.value)


def test_json_files_are_complete_or_not_there(tmp_path):
    file = tmp_path / "deep" / "value.json"
    assert read_json(file) == {}
    write_json(file, {"é": [1, 2.5, None]})
    assert read_json(file) == {"é": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(file, {"path": Path()})
    assert read_json(file) == {"é": [1, 2.5, None]}
