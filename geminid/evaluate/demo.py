"""The main job: data -> trained tokenizers -> one model over all modalities -> held-out figures -> the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geminid.config import Recipe
from geminid.corpus.build import build
from geminid.corpus.fetch import fetch
from geminid.evaluate.report import write_report
from geminid.train.child import call, peak_rss_gib
from geminid.train.rundir import RunDir, read_json, write_json
from geminid.train.stages import PHASES, run_stages

HEARTBEAT_S = 2.0


@dataclass
class Clock:
    """Seconds spent on a run in this and all earlier tries; downloads do not count."""

    file: Path
    origin: float  # on time.time()'s scale: now - origin = seconds spent

    @property
    def spent_s(self) -> float:
        return time.time() - self.origin

    def save(self) -> None:
        write_json(self.file, {"spent_s": self.spent_s})


@contextmanager
def running(file: Path) -> Iterator[Clock]:
    """A clock that is written down every few seconds, so that a killed run keeps its account."""
    clock = Clock(file, time.time() - read_json(file).get("spent_s", 0.0))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            clock.save()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield clock
    finally:
        stop.set()
        thread.join()
        clock.save()


def evaluate(recipe: Recipe, run_dir: Path, dataset_path: Path) -> dict[str, Any]:
    """In a child: JAX is imported there alone."""
    from geminid.evaluate.run import evaluate as measure

    return measure(recipe, run_dir, dataset_path)


def run(recipe: Recipe, run_dir: Path, cache: Path) -> dict[str, Any]:
    """Everything; what is done already is not done again. Returns the metrics.

    Leaves `metrics.json` and `report.html` in `run_dir`. ValueError when it holds another recipe's run.
    """
    own = RunDir(run_dir)
    own.claim(recipe)
    fetch(recipe.data, cache)
    with running(run_dir / "clock.json") as clock:
        begun = clock.spent_s
        dataset_path = build(recipe.data, cache)
        note_timing(own, "data", begun, clock.spent_s)
        run_stages(recipe, run_dir, dataset_path, clock.origin)
        begun = clock.spent_s
        metrics, evaluation_gib = call(evaluate, recipe, run_dir, dataset_path)
        note_timing(own, "evaluation", begun, clock.spent_s)
        metrics |= {"wall_s": clock.spent_s, "peak_rss_gib": peak_memory_gib(own, evaluation_gib)}
    write_json(run_dir / "metrics.json", metrics)
    write_report(run_dir)
    return metrics


def note_timing(run: RunDir, name: str, begun_s: float, ended_s: float) -> None:
    """Keeps the longest: a second call that finds everything done takes no time."""
    timings = read_json(run.timings)
    if ended_s - begun_s > timings.get(name, {}).get("wall_s", 0.0):
        timings[name] = {"start_s": begun_s, "wall_s": ended_s - begun_s, "steps": None}
        write_json(run.timings, timings)


def peak_memory_gib(run: RunDir, evaluation_gib: float) -> float:
    """Most that was resident at once, at most: the parent and the peaks of what ran side by side."""
    timings = read_json(run.timings)
    peaks = {name: timing.get("peak_rss_gib", 0.0) for name, timing in timings.items()}
    sides = [sum(max(peaks.get(name, 0.0) for name in lane) for lane in lanes) for lanes in PHASES]
    return peak_rss_gib() + max(*sides, evaluation_gib)
