"""Months of failing pods: exact books, the report's two figures, Young's interval, one line for what is impossible."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from geminid.cli import main
from geminid.plan.goodput import checkpoint_intervals, plan_goodput, spare_cubes
from geminid.plan.pods import Pods, Strategy
from geminid.plan.rates import PRESETS, Inputs, preset

# so many faults that hours hold what months do
ROUGH = dataclasses.replace(
    Inputs(pods=3, days=0.3, repair_h=0.5), rates=dataclasses.replace(PRESETS["tpuv4"], machine=0.02, sdc=3.0)
)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("rewired", [True, False])
def test_jumping_over_quiet_steps_gives_the_same_ledger(strategy, rewired):
    for seed in range(2):
        jumping, singly = (Pods(ROUGH, strategy, seed, rewired=rewired, singly=s) for s in (False, True))
        assert jumping.goodput() == singly.goodput()
        assert jumping.ledger.table(jumping.now) == singly.ledger.table(singly.now)
        assert jumping.controllers[0].step == singly.controllers[0].step
        assert jumping.num_interruptions == singly.num_interruptions > 2


@pytest.mark.parametrize("strategy", Strategy)
def test_every_nanosecond_of_every_pod_has_one_class(strategy):
    pods = Pods(dataclasses.replace(ROUGH, days=2.0), strategy, seed=5)
    goodput = pods.goodput()
    assert pods.now == round(2.0 * 86_400 * 1e9)
    assert sum(pods.ledger.totals(pods.now).values()) == pods.ledger.elapsed_ns(pods.now) == 3 * pods.now
    assert 0 < goodput < 1
    assert math.isclose(sum(pods.quarters) / 4, goodput)


def test_without_faults_all_time_is_useful():
    perfect = dataclasses.replace(PRESETS["tpuv4"], machine=0.0, cable=0.0, switch=0.0, sdc=0.0)
    quiet = Inputs(pods=2, days=1.0, rates=perfect)
    for strategy in Strategy:
        assert Pods(quiet, strategy, seed=0).goodput() == pytest.approx(1.0, abs=2 * quiet.step_s / 86_400)


def test_near_the_reports_scale_the_reports_two_figures():
    """Gemini report, section 5: 85% with periodic checkpoints, 97% with copies in memory."""
    inputs = Inputs(days=60.0)
    assert Pods(inputs, Strategy.DISK, seed=0).goodput() == pytest.approx(0.85, abs=0.01)
    assert Pods(inputs, Strategy.REPLICAS, seed=0).goodput() == pytest.approx(0.97, abs=0.01)
    assert Pods(inputs, Strategy.ELASTIC, seed=0).goodput() > 0.99


def test_the_rates_are_the_published_ones():
    """1,024 machines at 0.08%, 12,288 cables at 0.005%; Llama 3: 413 + 6 interruptions of 16,384 GPUs in 54 days."""
    assert Inputs().cube_faults_a_day == pytest.approx(1024 * 0.0008 + 12_288 * 0.00005)
    llama = Inputs(pods=4, rates=preset("llama3"), spare_cubes=0)
    assert 54 * (llama.interruptions_a_day + llama.rates.sdc) == pytest.approx(419)


def test_the_best_checkpoint_interval_is_youngs():
    inputs = Inputs(days=60.0)
    found = checkpoint_intervals(inputs)
    assert found["young_s"] == pytest.approx(math.sqrt(2 * 20.0 * inputs.mean_time_between_s))
    assert abs(found["daly_s"] - found["young_s"]) < inputs.save_s
    at_young = found["goodput"][round(found["young_s"])]
    assert max(found["goodput"].values()) - at_young < 0.003  # the optimum is flat
    assert at_young - min(found["goodput"].values()) > 0.05
    assert 0.5 <= found["best_s"] / found["young_s"] <= 2


def test_some_spares_are_worth_their_cubes():
    found = spare_cubes(Inputs(days=10.0), Strategy.ELASTIC)
    by_number = found["by_number"]
    assert 1 <= found["best"] <= 4
    assert by_number[0]["yield"] < by_number[8]["yield"] < by_number[found["best"]]["yield"]


def test_the_answer():
    result = plan_goodput(dataclasses.replace(ROUGH, days=1.0), num_seeds=1)
    low, high = result["goodput_interval"]
    assert 0 <= low <= result["goodput"] <= high <= 1
    assert result["goodput_static"] < result["goodput"]
    for summary in result["strategies"].values():
        assert sum(summary["shares"].values()) == pytest.approx(1.0, abs=1e-9)
        useful = summary["shares"].get("useful step", 0) + summary["shares"].get("degraded step", 0)
        assert useful == pytest.approx(summary["goodput"])


def test_the_command(capsys, tmp_path):
    picture = tmp_path / "goodput.svg"
    arguments = ["plan", "goodput", "--pods", "2", "--days", "3", "--seeds", "1", "--picture", str(picture)]
    main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"goodput", "goodput_static", "goodput_interval", "strategies", "sensitivity"} <= result.keys()
    assert picture.read_text().startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir()] == ["goodput.svg"]
    main(arguments[:-2])
    assert "where" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--pods", "17"], "17 pods cannot be simulated; give 1 to 16"),
        (["--pods", "0"], "0 pods cannot be simulated; give 1 to 16"),
        (["--days", "-1"], "days is -1.0; give a finite number of at least 0"),
        (["--days", "0"], "days is 0.0; give more than 0 and at most 366"),
        (["--days", "nan"], "days is nan; give a finite number of at least 0"),
        (["--set", "rates.machine=-0.1"], "machine is -0.1; give a finite number of at least 0"),
        (["--set", "rates.chips_a_machine=0"], "chips_a_machine is 0; it must be at least 1"),
        (["--set", "spare_cubes=64"], "64 spare cubes of the 64 in a pod leave none; keep at most 63"),
        (["--set", "step_s=0.5"], "update_s 1.0 must lie between 0 and step_s 0.5"),
        (["--set", "backup_s=0"], "backup_s is 0; give seconds between disk checkpoints"),
        (["--seeds", "0"], "0 seeds cannot be simulated; give 1 to 8"),
        (["--strategy", "hope"], "unknown strategy 'hope'; known: disk, replicas, elastic"),
        (["--rates", "tpuv9"], "unknown failure rates 'tpuv9'; known: tpuv4, llama3"),
        (["--picture", "goodput.txt"], "goodput.txt is no picture: its name ends in '.txt'; use .png, .svg or .pdf"),
        (["--picture", "no/such/place.png"], "no/such: no such directory"),
    ],
)
def test_the_impossible_is_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "goodput", *arguments])
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert captured.err.startswith(f"geminid: {line}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
