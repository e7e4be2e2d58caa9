"""Soak: a run that is hurt many times must end with the bits of runs that were not.

The same run is trained with one slice and with two that nothing disturbs, and its digest compared with theirs.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geminid.config import Recipe
from geminid.overrides import override
from geminid.runtime.conductor import Places
from geminid.runtime.launch import FIRST_PHASES, check, conduct, write_codes
from geminid.runtime.requests import Fleet, SoakRequest
from geminid.runtime.saboteur import Fault, Healing, Saboteur, healing
from geminid.runtime.timeline import totals
from geminid.train import child
from geminid.train.rundir import RunDir, read_rows, write_json
from geminid.train.stages import run_stages

MANY_STEPS = 1_000_000  # of the recipe: a soak ends when its faults are through


@dataclass(frozen=True)
class Trial:
    """One run of the joint stage in a directory of its own. classes: of the ledger."""

    step: int
    digest: str
    healings: tuple[Healing, ...]
    rows: Sequence[dict[str, Any]]
    ledger: dict[str, Any]


def soak(recipe: Recipe, request: SoakRequest, run_dir: Path, dataset_path: Path) -> dict[str, Any]:
    """Runs it all; the fields of `geminid soak --json`."""
    recipe = override(recipe, [f"joint.stage.steps={MANY_STEPS}"])
    fleet = Fleet(request.slices, request.standbys)
    check(recipe, fleet)
    run_stages(recipe, run_dir / "encoders", dataset_path, phases=FIRST_PHASES)
    child.call(write_codes, recipe, run_dir / "encoders", dataset_path)
    stage = Stage(recipe, run_dir, dataset_path)
    hurt = stage.trial("hurt", fleet, faults_of(request), request)
    restarted = stage.trial("restarted", fleet, [Fault.RESTART] * request.restarts, request)
    calm = [stage.trial(f"calm-{n}", Fleet(n, 0), [], request, stop_at=hurt.step) for n in (2, 1)]
    return summary(request, hurt, restarted, calm)


@dataclass(frozen=True)
class Stage:
    """Where trials find trained encoders, and leave what they wrote."""

    recipe: Recipe
    run_dir: Path
    dataset_path: Path

    def trial(
        self, name: str, fleet: Fleet, faults: Sequence[Fault], request: SoakRequest, stop_at: int | None = None
    ) -> Trial:
        """The joint stage anew; a trial without faults ends at `stop_at` steps."""
        run = RunDir(self.run_dir / name)
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(self.run_dir / "encoders", run.path, ignore=shutil.ignore_patterns("checkpoints", "lock"))
        places, inflicted = Places(run), []

        def beside(namespace: str) -> Any:
            if not faults:
                return nullcontext()
            saboteur = Saboteur(
                places, namespace, faults, fleet.slices, fleet.slices + fleet.standbys, request.seed, request.interval_s
            )
            inflicted.append(saboteur)
            return saboteur

        if not faults and stop_at is None:
            return Trial(0, "", (), (), {})
        ended = conduct(self.recipe, run, self.dataset_path, fleet, stop_at=stop_at, beside=beside)
        rows = read_rows(places.events)
        wounds = inflicted[0].wounds if inflicted else []
        write_json(places.events.with_name("wounds.json"), {"wounds": [dataclasses.asdict(w) for w in wounds]})
        healings = tuple(healing(rows, wound) for wound in wounds)
        return Trial(int(ended["step"]), str(ended["digest"]), healings, rows, totals(places.ledgers))


def summary(request: SoakRequest, hurt: Trial, restarted: Trial, calm: Sequence[Trial]) -> dict[str, Any]:
    """What came of it."""
    times = sorted(h.recovery_s for h in hurt.healings if h.recovery_s is not None)
    restarts = sorted(h.recovery_s for h in restarted.healings if h.recovery_s is not None)
    by_fault = {
        str(fault): [h.recovery_s for h in hurt.healings if h.wound.fault is fault and h.recovery_s is not None]
        for fault in Fault
    }
    return {
        "kills": request.kills,
        "faults": len(hurt.healings),
        "recovered": len(times),
        "lost_steps_max": max((h.lost_steps for h in hurt.healings), default=0),
        "digest_equal": all((trial.step, trial.digest) == (hurt.step, hurt.digest) for trial in calm),
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
        "goodput_restart": restarted.ledger.get("goodput_after_start"),
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
