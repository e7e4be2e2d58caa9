"""A soak compares all states of a hurt run with those of undisturbed ones, and goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from geminid.config import Recipe
from geminid.overrides import override
from geminid.recipes import demo_fast
from geminid.runtime import soak
from geminid.runtime.conductor import Places
from geminid.runtime.requests import Fleet, SoakRequest
from geminid.runtime.saboteur import Fault, Wound
from geminid.train.rundir import RunDir, read_json

STEPS = 30


def rows_of(steps: range, *, team: str = "a", wrong: int | None = None) -> list[dict[str, Any]]:
    """A log's rows, one commit a second."""
    return [
        {"kind": "commit", "t": float(step), "step": step, "controller": 0, "team": [team],
         "digest": "wrong" if step == wrong else f"{step:016x}"}
        for step in steps
    ]  # fmt: skip


def trial(rows: list[dict[str, Any]]) -> soak.Trial:
    return soak.Trial(rows[-1]["step"], rows[-1]["digest"], (), rows, {})


def test_every_step_counts_not_only_the_last() -> None:
    hurt = trial(rows_of(range(1, 11)))
    assert soak.compared(hurt, [hurt, hurt]) == {"digest_equal": True, "digests_compared": 10}
    other = trial(rows_of(range(1, 11), wrong=4))
    assert not soak.compared(hurt, [hurt, other])["digest_equal"]
    shorter = trial(rows_of(range(1, 10)))
    assert not soak.compared(hurt, [hurt, shorter])["digest_equal"]


def test_a_step_that_a_dying_controller_did_not_note_is_not_compared() -> None:
    full = trial(rows_of(range(1, 11)))
    gap = trial([row for row in full.rows if row["step"] != 5])
    assert soak.compared(gap, [full]) == {"digest_equal": True, "digests_compared": 9}


def test_a_step_that_was_committed_twice_counts_twice() -> None:
    calm = trial(rows_of(range(1, 11)))
    again = trial([*rows_of(range(1, 8), wrong=7), *rows_of(range(7, 11))])
    assert not soak.compared(again, [calm])["digest_equal"]


class Runs:
    """In the place of `conduct`: writes the log that a run would write; fails in the `dies_in`-th call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []  # which run, and from which step on
        self.dies_in: int | None = None

    def __call__(
        self,
        recipe: Recipe,
        run: RunDir,
        dataset_path: Path,
        fleet: Fleet,
        stop_at: int | None = None,
        beside: Callable[[str], AbstractContextManager[Any]] | None = None,
    ) -> dict[str, Any]:
        places = Places(run)
        places.ledgers.mkdir(parents=True, exist_ok=True)
        done = max(soak.digests(soak.read_rows(places.events)), default=0)
        self.calls.append((run.path.name, done))
        if beside is not None:
            beside("nowhere")
        dies = len(self.calls) == self.dies_in
        last = STEPS // 2 if dies else stop_at or STEPS
        with places.events.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows_of(range(done + 1, last + 1)))
        if dies:
            raise KeyboardInterrupt
        return {"step": last, "digest": f"{last:016x}"}


class Wounding:
    """In the place of the saboteur: one kill at a time between two steps."""

    def __init__(self, places: Places, namespace: str, faults: list[Fault], *rest: Any) -> None:
        self.wounds = [Wound(fault, "b", 2.5 + k, "outside") for k, fault in enumerate(faults)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(soak, "conduct", made)
    monkeypatch.setattr(soak, "Saboteur", Wounding)
    monkeypatch.setattr(soak, "totals", lambda ledgers: {"goodput_after_start": 0.5, "classes_s": {"all": {}}})
    monkeypatch.setattr(
        soak, "run_stages", lambda recipe, path, dataset, phases: path.mkdir(parents=True, exist_ok=True)
    )
    monkeypatch.setattr(soak.child, "call", lambda *what: None)
    return made


@pytest.mark.parametrize("dies_in", [1, 2, 3, 4])
def test_the_same_command_continues_an_interrupted_soak(tmp_path: Path, runs: Runs, dies_in: int) -> None:
    recipe, request = demo_fast(), SoakRequest(kills=3, restarts=2)
    runs.dies_in = dies_in
    with pytest.raises(KeyboardInterrupt):
        soak.soak(recipe, request, tmp_path, tmp_path)
    runs.calls.clear()
    runs.dies_in = None
    found = soak.soak(recipe, request, tmp_path, tmp_path)
    order = ["hurt", "restarted", "calm-2", "calm-1"]
    begins_at = STEPS // 2 if order[dies_in - 1].startswith("calm") else 0
    assert runs.calls == [(order[dies_in - 1], begins_at), *((name, 0) for name in order[dies_in:])]
    assert found["digest_equal"]
    assert (found["recovered"], found["restarts"], found["digests_compared"]) == (3, 2, STEPS)
    assert read_json(tmp_path / "result.json") == found


def test_another_soak_or_one_that_was_through_begins_anew(tmp_path: Path, runs: Runs) -> None:
    recipe = demo_fast()
    for request in (SoakRequest(kills=3), SoakRequest(kills=3), SoakRequest(kills=4)):
        runs.calls.clear()
        soak.soak(recipe, request, tmp_path, tmp_path)
        assert [name for name, _ in runs.calls] == ["hurt", "restarted", "calm-2", "calm-1"]
        assert {done for _, done in runs.calls} == {0}


def test_another_recipe_in_the_same_directory_loses_nothing(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SoakRequest(kills=3)
    runs.dies_in = 3
    with pytest.raises(KeyboardInterrupt):
        soak.soak(demo_fast(), request, tmp_path, tmp_path)

    def refuse(*what: Any, **how: Any) -> None:
        raise ValueError("holds a run of another recipe")

    with monkeypatch.context() as patched:
        patched.setattr(soak, "run_stages", refuse)
        with pytest.raises(ValueError, match="another recipe"):
            soak.soak(override(demo_fast(), ["joint.shards=8"]), request, tmp_path, tmp_path)
    runs.calls.clear()
    soak.soak(demo_fast(), request, tmp_path, tmp_path)
    assert runs.calls == [("calm-2", STEPS // 2), ("calm-1", 0)]
