"""Measures a trained run on everything that was kept from it, and writes `metrics.json` and the examples."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from geminid.batches.memory import Memory
from geminid.config import Recipe
from geminid.corpus.store import open_dataset
from geminid.evaluate import drawing, few_shot, hearing, naming, watching
from geminid.evaluate.bench import Bench, Metrics
from geminid.evaluate.examples import Examples, save_examples
from geminid.evaluate.respondent import load_respondent
from geminid.model.sizes import num_params
from geminid.train.compiled import keep_compiled
from geminid.train.progress import bars
from geminid.train.rundir import RunDir, read_json, write_json

NUM_PARTS = 8


def evaluate(recipe: Recipe, run_dir: Path, dataset_path: Path) -> Metrics:
    """All figures of a finished run: see `geminid.evaluate.measures` for what they mean.

    ValueError when the directory holds another recipe's run; FileNotFoundError when it holds none, or a stage is not
    finished.
    """
    run = RunDir(run_dir)
    run.check(recipe)
    keep_compiled()
    respondent = load_respondent(run_dir)
    bench = Bench(respondent, Memory(recipe, open_dataset(dataset_path)), recipe.seed)
    metrics: Metrics = {}
    with bars({"measured": NUM_PARTS}) as shown:
        count = itertools.count(1)

        def note(found: tuple[Metrics, Any]) -> Any:
            metrics.update(found[0])
            shown.update("measured", next(count))
            return found[1]

        judge = note(({}, drawing.trained_judge(bench, run_dir / "judge.npz")))
        examples = Examples(
            pictures=note(naming.measure(bench)),
            recordings=note(hearing.measure(bench)),
            animations=note(watching.measure(bench)),
            orders=note(watching.measure_order(bench)),
            drawings=note(drawing.measure(bench, judge)),
            reconstructions=note(drawing.measure_codec(bench)),
            few_shots=note(few_shot.measure(bench)),
        )
    save_examples(run_dir, examples)
    metrics |= costs(recipe, run, respondent.space.size)
    before = read_json(run_dir / "metrics.json")
    metrics |= {key: before[key] for key in ("wall_s", "peak_rss_gib") if key in before}
    write_json(run_dir / "metrics.json", metrics)
    shutil.copyfile(dataset_path / "manifest.json", run_dir / "manifest.json")
    return metrics


def costs(recipe: Recipe, run: RunDir, num_ids: int) -> Metrics:
    """Size, positions trained on, padding."""
    cursor = read_json(run.cursor("joint"))
    return {
        "num_params": num_params(recipe, num_ids),
        "tokens": cursor["filled"],
        "padding_fraction": 1.0 - cursor["filled"] / cursor["total"],
    }
