"""Soak: a run that is hurt many times must have the bits of runs that were not.

The same run is trained with two slices and with one that nothing disturbs, and its digests, of every step, are compared
with theirs. That takes as long again: the same command continues a soak that was interrupted.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geminid.config import Recipe
from geminid.overrides import override
from geminid.runtime.conductor import Places
from geminid.runtime.launch import FIRST_PHASES, check, conduct, write_codes
from geminid.runtime.requests import Fleet, SoakRequest
from geminid.runtime.saboteur import Fault, Healing, Saboteur, Wound, healing
from geminid.runtime.timeline import totals
from geminid.train import child
from geminid.train.rundir import RunDir, read_json, read_rows, write_json
from geminid.train.stages import run_stages

MANY_STEPS = 1_000_000  # of the recipe: a soak ends when its faults are through
CALM_SLICES = (2, 1)
TRIALS = ("hurt", "restarted", *(f"calm-{n}" for n in CALM_SLICES))


@dataclass(frozen=True)
class Trial:
    """One run of the joint stage in a directory of its own. rows: of its log; classes: of the ledger."""

    step: int
    digest: str
    healings: tuple[Healing, ...]
    rows: Sequence[dict[str, Any]]
    ledger: dict[str, Any]


def soak(recipe: Recipe, request: SoakRequest, run_dir: Path, dataset_path: Path) -> dict[str, Any]:
    """Runs it all, or what an interrupted soak of the same recipe and request left over.

    The fields of `geminid soak --json`.
    """
    recipe = override(recipe, [f"joint.stage.steps={MANY_STEPS}"])
    fleet = Fleet(request.slices, request.standbys)
    check(recipe, fleet)
    run_stages(recipe, run_dir / "encoders", dataset_path, phases=FIRST_PHASES)
    child.call(write_codes, recipe, run_dir / "encoders", dataset_path)
    record = run_dir / "soak.json"
    asked = {"recipe": recipe.fingerprint(), "request": dataclasses.asdict(request)}
    if read_json(record) != asked:
        for name in TRIALS:
            shutil.rmtree(run_dir / name, ignore_errors=True)
        write_json(record, asked)
    stage = Stage(recipe, run_dir, dataset_path, request)
    hurt = stage.hurt("hurt", fleet, faults_of(request))
    restarted = stage.hurt("restarted", fleet, [Fault.RESTART] * request.restarts) if request.restarts else None
    calm = [stage.calm(f"calm-{n}", Fleet(n, 0), hurt.step) for n in CALM_SLICES]
    found = summary(request, hurt, restarted, calm)
    write_json(run_dir / "result.json", found)
    record.unlink()
    return found


@dataclass(frozen=True)
class Stage:
    """Where trials find trained encoders, and leave what they wrote."""

    recipe: Recipe
    run_dir: Path
    dataset_path: Path
    request: SoakRequest

    def hurt(self, name: str, fleet: Fleet, faults: Sequence[Fault]) -> Trial:
        """With faults, and until they are through; anew if an earlier one was interrupted."""
        run, request = RunDir(self.run_dir / name), self.request
        places = Places(run)
        outcome = places.events.with_name("outcome.json")
        if not outcome.is_file():
            self._begin(run)
            saboteurs = []

            def beside(namespace: str) -> Saboteur:
                whole = fleet.slices + fleet.standbys
                seed, interval_s = request.seed, request.interval_s
                saboteurs.append(Saboteur(places, namespace, faults, fleet.slices, whole, seed, interval_s))
                return saboteurs[0]

            ended = conduct(self.recipe, run, self.dataset_path, fleet, beside=beside)
            wounds = [dataclasses.asdict(wound) for wound in saboteurs[0].wounds]
            write_json(outcome, {"step": ended["step"], "digest": ended["digest"], "wounds": wounds})
        told, rows = read_json(outcome), read_rows(places.events)
        wounds_told = [Wound(Fault(w["fault"]), w["victim"], w["at_s"], w["how"]) for w in told["wounds"]]
        healings = tuple(healing(rows, wound) for wound in wounds_told)
        return Trial(told["step"], told["digest"], healings, rows, totals(places.ledgers))

    def calm(self, name: str, fleet: Fleet, steps: int) -> Trial:
        """Without faults, to `steps` steps; goes on where an earlier one was interrupted."""
        run = RunDir(self.run_dir / name)
        places = Places(run)
        if not places.events.is_file():
            self._begin(run)
        if steps not in digests(read_rows(places.events)):
            conduct(self.recipe, run, self.dataset_path, fleet, stop_at=steps)
        rows = read_rows(places.events)
        return Trial(steps, digests(rows)[steps], (), rows, totals(places.ledgers))

    def _begin(self, run: RunDir) -> None:
        """A directory with the encoders, and nothing of the joint stage."""
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(self.run_dir / "encoders", run.path, ignore=shutil.ignore_patterns("checkpoints", "lock"))


def digests(rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Of the state after each committed step. A step that a dying controller did not note is missing."""
    return {row["step"]: row["digest"] for row in rows if row["kind"] == "commit"}


def compared(hurt: Trial, calm: Sequence[Trial]) -> dict[str, Any]:
    """Whether all committed states were the same, and of how many steps all runs noted one.

    A step that was committed more than once counts each time.
    """
    expected = [digests(trial.rows) for trial in calm]
    seen = [(row["step"], row["digest"]) for row in hurt.rows if row["kind"] == "commit"]
    same = all(of.get(step, digest) == digest for of in expected for step, digest in seen)
    ends = all((trial.step, trial.digest) == (hurt.step, hurt.digest) for trial in calm)
    common = {step for step, _ in seen}.intersection(*expected)
    return {"digest_equal": same and ends, "digests_compared": len(common)}


def summary(request: SoakRequest, hurt: Trial, restarted: Trial | None, calm: Sequence[Trial]) -> dict[str, Any]:
    """What came of it."""
    times = sorted(h.recovery_s for h in hurt.healings if h.recovery_s is not None)
    healed = restarted.healings if restarted else ()
    restarts = sorted(h.recovery_s for h in healed if h.recovery_s is not None)
    by_fault = {
        str(fault): [h.recovery_s for h in hurt.healings if h.wound.fault is fault and h.recovery_s is not None]
        for fault in Fault
    }
    return {
        "kills": request.kills,
        "faults": len(hurt.healings),
        "recovered": len(times),
        "lost_steps_max": max((h.lost_steps for h in hurt.healings), default=0),
        **compared(hurt, calm),
        "step": hurt.step,
        "digest": hurt.digest,
        "recovery_s_p50": quantile(times, 0.5),
        "recovery_s_p99": quantile(times, 0.99),
        "recovery_s_by_fault": {name: quantile(sorted(t), 0.5) for name, t in by_fault.items() if t},
        "faults_by_point": counts([h.wound.how for h in hurt.healings]),
        "step_s_p50": step_s(calm[0].rows),
        "restart_s_p50": quantile(restarts, 0.5),
        "restarts": len(restarts),
        "goodput": hurt.ledger["goodput_after_start"],
        "goodput_restart": restarted.ledger["goodput_after_start"] if restarted else None,
        "interval_s": request.interval_s,
        "classes_s": hurt.ledger["classes_s"]["all"],
    }


def faults_of(request: SoakRequest) -> list[Fault]:
    return [
        *[Fault.KILL] * request.kills, *[Fault.STOP] * request.stops,
        *[Fault.CONTROLLER] * request.controllers, *[Fault.STANDBY] * request.dead_standbys,
    ]  # fmt: skip


def counts(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


def quantile(ordered: Sequence[float], q: float) -> float | None:
    """Of sorted values, the nearest from above; None without values."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def step_s(rows: Sequence[dict[str, Any]]) -> float | None:
    """Median seconds between commits."""
    times = [row["t"] for row in rows if row["kind"] == "commit"]
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return statistics.median(gaps) if gaps else None
