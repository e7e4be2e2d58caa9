"""The ladder: what is trained once, when the held-out rung is foretold, and by what law."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geminid import recipes
from geminid.cli import main
from geminid.plan import fit, ladder
from geminid.plan.ladder import LOSSES, Measured, Rung, climb, plan_rungs
from geminid.plan.law import Law
from geminid.plan.requests import LadderRequest

DEMO = recipes.demo()
LAW = Law(E=1.2, A=90.0, B=600.0, alpha=0.4, beta=0.5)
PLAN = plan_rungs(DEMO, [100, 150, 200, 250, 320, 400], 600)


def num_params(rung: Rung) -> int:
    """Of a demo-like decoder, roughly: only the ladder itself is under test."""
    return 4199 * rung.decoder.width + 44 * rung.decoder.width**2


class Obedient:
    """Stands in for training: LAW's loss, 2% more for the held-out rung, and `early` times that before half-way."""

    def __init__(self, directory: Path, stop_after: int | None = None, early: float = 1.0):
        self.directory, self.stop_after, self.early = directory, stop_after, early
        self.trained: list[str] = []
        self.foretold_before: dict[str, bool] = {}

    def num_params(self, rung: Rung) -> int:
        return num_params(rung)

    def __call__(self, rung: Rung, report: Callable[[int], None]) -> list[Measured]:
        if len(self.trained) == self.stop_after:
            raise KeyboardInterrupt
        self.foretold_before[rung.name] = (self.directory / "prediction.json").is_file()
        self.trained.append(rung.name)
        report(rung.steps[-1])
        return [self.measured(rung, *each) for each in zip(rung.rows, rung.steps, strict=True)]

    def measured(self, rung: Rung, row: str, steps: int) -> Measured:
        tokens = steps * PLAN.positions
        loss = float(LAW.loss(num_params(rung), tokens)) * (1.02 if rung is PLAN.held_out else 1.0)
        if tokens < PLAN.rungs[0].steps[-1] * PLAN.positions / 2:
            loss *= self.early
        return Measured(row, num_params(rung), tokens, loss, loss, loss)


def up(directory: Path, trainer: Obedient) -> dict:
    return climb(PLAN, directory, lambda: trainer, replicates=20, seed=0)


def test_the_rungs_are_one_family_below_the_recipes_own_decoder():
    widths = sorted({rung.decoder.width for rung in PLAN.rungs})
    assert len(widths) >= 5 and widths[-1] < PLAN.held_out.decoder.width == DEMO.decoder.width
    assert len(PLAN.rungs) == len(widths) == len({rung.name for rung in PLAN.rungs})
    assert PLAN.held_out.learning_rate == DEMO.joint.stage.optimiser.learning_rate
    for rung in PLAN.rungs:
        assert max(rung.steps) < PLAN.held_out.steps[-1]
        assert rung.decoder.head_dim % 2 == 0
        assert rung.decoder.num_layers == DEMO.decoder.num_layers
        assert rung.decoder.mlp_width / rung.decoder.width == pytest.approx(512 / 192)
    smallest = {rung.decoder for rung in plan_rungs(recipes.get("demo_fast"), [1], 3).rungs}
    assert len(smallest) == len(widths)


def test_runs_of_a_known_law_foretell_the_held_out_one(tmp_path):
    trainer = Obedient(tmp_path, early=1.1)  # of which nothing may be seen
    answer = up(tmp_path, trainer)
    tokens = 600 * 16 * 128
    assert answer["predicted_tokens"] == tokens
    assert answer["predicted_loss"] == pytest.approx(LAW.loss(num_params(PLAN.held_out), tokens), rel=1e-4)
    assert answer["error_fraction"] == pytest.approx(1 / 1.02 - 1, abs=1e-4)
    for name in ("E", "alpha", "beta"):
        assert answer[name] == pytest.approx(getattr(LAW, name), rel=0.02)
    low, high = answer["predicted_interval"]
    assert low <= answer["predicted_loss"] * (1 + 1e-6) and answer["predicted_loss"] * (1 - 1e-6) <= high
    assert trainer.trained == [rung.name for rung in (*PLAN.rungs, PLAN.held_out)]
    # written before it is trained, and not from it
    assert [name for name, there in trainer.foretold_before.items() if there] == [PLAN.held_out.name]
    assert json.loads((tmp_path / "prediction.json").read_text())["predicted_loss"] == answer["predicted_loss"]


def rows_of(law: Law, top: float = 1.0) -> list[Measured]:
    """Of the rungs of PLAN; those of the widest have `top` times the law's loss."""
    found = []
    for rung in PLAN.rungs:
        for row, steps in zip(rung.rows, rung.steps, strict=True):
            tokens, more = steps * PLAN.positions, top if rung is PLAN.rungs[-1] else 1.0
            loss = more * float(law.loss(num_params(rung), tokens))
            found.append(Measured(row, num_params(rung), tokens, loss, loss, loss))
    return found


def test_the_backtest_foretells_the_largest_rung_from_those_as_far_below():
    rows = rows_of(LAW, top=1.04)
    last = rows[-1]
    found = ladder.backtest(rows, 2 * last.params, round(1.5 * last.tokens))
    # half of its parameters and two thirds of its tokens: the three smallest sizes, up to 250 steps
    assert found == {
        "rung": "120x400",
        "rows": 3 * 4,
        "predicted_loss": pytest.approx(LAW.loss(last.params, last.tokens), rel=1e-3),
        "error_fraction": pytest.approx(1 / 1.04 - 1, rel=0.03),
    }
    assert ladder.backtest(rows, 8 * last.params, last.tokens) is None  # no size is an eighth of the largest


def test_a_stopped_ladder_goes_on_where_it_was(tmp_path):
    whole = up(tmp_path / "whole", Obedient(make(tmp_path / "whole")))
    directory = make(tmp_path / "stopped")
    first, second, third = Obedient(directory, stop_after=2), Obedient(directory, stop_after=3), Obedient(directory)
    with pytest.raises(KeyboardInterrupt):
        up(directory, first)
    finished = ladder.read_finished(directory / "ladder.csv")
    assert list(finished) == [row for rung in PLAN.rungs[:2] for row in rung.rows]
    with pytest.raises(KeyboardInterrupt):
        up(directory, second)  # all but the held-out one
    assert not (set(first.trained) & set(second.trained))
    written = (directory / "prediction.json").stat().st_mtime_ns
    assert up(directory, third) == whole
    assert third.trained == [PLAN.held_out.name]
    assert (directory / "prediction.json").stat().st_mtime_ns == written
    nothing: Callable = pytest.fail  # all is done: nothing to train, nothing to make
    assert climb(PLAN, directory, nothing, 20, 0) == whole


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_a_directory_holds_one_ladder(tmp_path):
    ladder.claim(tmp_path, DEMO, PLAN)
    ladder.claim(tmp_path, DEMO, PLAN)
    with pytest.raises(ValueError, match="holds another ladder"):
        ladder.claim(tmp_path, DEMO, plan_rungs(DEMO, [100, 150, 200], 600))


def test_a_measurement_without_a_prediction_does_not_count(tmp_path):
    whole = up(tmp_path, Obedient(tmp_path))
    (tmp_path / "prediction.json").unlink()
    again = Obedient(tmp_path)
    assert up(tmp_path, again) == whole
    assert again.trained == [PLAN.held_out.name] and again.foretold_before[PLAN.held_out.name]


def test_plan_budget_reads_what_the_ladder_wrote(tmp_path, capsys):
    answer = up(tmp_path, Obedient(tmp_path))
    runs = fit.read_runs(tmp_path / "ladder.csv")
    assert len(runs) == sum(len(rung.steps) for rung in PLAN.rungs) + 1
    np.testing.assert_array_equal(runs.loss[:-1], [rung["loss"] for rung in answer["rungs"]])
    main(
        [
            "plan",
            "budget",
            "--fit",
            str(tmp_path / "ladder.csv"),
            "--trim",
            "0",
            "--replicates",
            "2",
            "--flops",
            "1e13",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_runs"] == len(runs)


def test_the_picture_is_whole(tmp_path):
    from geminid.plan import pictures

    answer = up(tmp_path, Obedient(tmp_path))
    pictures.ladder(tmp_path / "ladder.png", LAW, answer)
    assert (tmp_path / "ladder.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def finished_stages(directory: Path, recipe=DEMO, leave_out: str = "") -> Path:
    for name in ("tokenizer.model", *(f"stages/{stage}/params.safetensors" for stage in ladder.NEEDED)):
        if not leave_out or leave_out not in name:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).touch()
    (directory / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    return directory


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "runs/demo has no finished tokenizer, codec, vision, audio; `geminid train demo` makes them"),
        ("--run-dir no-audio", "no-audio has no finished audio; `geminid train demo --run-dir no-audio` makes them"),
        ("--run-dir whole --recipe demo_fast", "whole holds a run of recipe 'demo'; give --recipe demo"),
        ("--run-dir learning", "'joint.encoder_rate' of learning is 0.1"),
        ("--run-dir whole --steps 100,400", "--steps is '100,400'; it must be at least three different whole numbers"),
        ("--run-dir whole --steps 100,many", "--steps is '100,many'; it must be"),
        ("--run-dir whole --steps 0,5,9", "--steps is '0,5,9' and --held-out-steps 480; steps are 1 or more"),
        ("--run-dir whole --held-out-steps 320", "--steps is '100,133,160,200,266,320' and --held-out-steps 320; "),
        ("--run-dir whole --replicates 1", "--replicates is 1; an error takes at least 2"),
        ("--run-dir whole --picture no/such/place.png", "no/such: no such directory"),
        ("--run-dir broken", "broken/ladder/ladder.csv is not as the ladder wrote it ("),
        ("--run-dir narrow", "'decoder.width' is 4; too small for 5 smaller ones"),
        ("--run-dir begun", "begun/ladder holds another ladder (7x9); remove it, or ask for the same"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geminid.cli._dataset_path", lambda recipe: tmp_path / "data")
    joint = dataclasses.replace(DEMO.joint, encoder_rate=0.1)
    finished_stages(tmp_path / "no-audio", leave_out="audio")
    finished_stages(tmp_path / "whole")
    finished_stages(tmp_path / "learning", dataclasses.replace(DEMO, joint=joint))
    decoder = dataclasses.replace(DEMO.decoder, width=4, head_dim=2, mlp_width=4)
    finished_stages(tmp_path / "narrow", dataclasses.replace(DEMO, decoder=decoder))
    make(finished_stages(tmp_path / "broken") / "ladder").joinpath("ladder.csv").write_text("rung,params\n36x100,x\n")
    begun = finished_stages(tmp_path / "begun") / "ladder"
    make(begun)
    (begun / "plan.json").write_text(json.dumps({"recipe": DEMO.fingerprint(), "rungs": {"7x9": {}}}))
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "ladder", *words.split()])
    out, err = capsys.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert err.startswith("geminid: " + expected) and err.count("\n") == 1


def test_defaults_are_a_ladder():
    assert ladder.steps_of(LadderRequest()) == [100, 133, 160, 200, 266, 320]
    assert {field.name for field in dataclasses.fields(Measured)} >= {"params", "tokens", *LOSSES}
