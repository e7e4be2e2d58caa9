"""`geminid bench overhead`: what copies, digests, checks and the ledger cost a run that nothing disturbs.

One run of slices makes and compares its digests in every other block of steps, and writes down in each step what the
ledger took. So both kinds of steps run on the same machine in the same minute, and neighbours are compared.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geminid.config import Recipe
from geminid.overrides import override
from geminid.runtime.conductor import Places
from geminid.runtime.launch import FIRST_PHASES, check, conduct, write_codes
from geminid.runtime.requests import Checking, Fleet, OverheadRequest
from geminid.train import child
from geminid.train.rundir import RunDir, read_rows
from geminid.train.stages import run_stages

SHORT = ("codec_stage.steps=2", "vision_stage.steps=2", "audio_stage.steps=2")  # their values cost no time
RESAMPLES = 10_000


def overhead(recipe: Recipe, request: OverheadRequest, run_dir: Path, dataset_path: Path) -> dict[str, Any]:
    """Runs it; the fields of `geminid bench overhead --json`."""
    changes = [*SHORT, f"joint.shards={request.shards}", f"joint.stage.steps={request.steps}"]
    recipe = override(recipe, [*changes, f"joint.stage.save_every={request.steps}"])
    fleet = Fleet(request.slices, audit_every=request.audit_every)
    check(recipe, fleet)
    run_stages(recipe, run_dir, dataset_path, phases=FIRST_PHASES)  # refuses a directory of anything else
    child.call(write_codes, recipe, run_dir, dataset_path)
    run = RunDir(run_dir)
    for earlier in (run.stage("joint"), Places(run).events.parent):
        shutil.rmtree(earlier, ignore_errors=True)
    conduct(recipe, run, dataset_path, fleet, checking=Checking(request.block))
    return {"recipe": recipe.name, **shares(read_rows(Places(run).events), request)}


@dataclass(frozen=True)
class Step:
    """Seconds from one commit to the next, and how many of them the ledger took. number: steps committed before."""

    number: int
    wall_s: float
    books_s: float


def shares(rows: Sequence[dict[str, Any]], request: OverheadRequest) -> dict[str, Any]:
    """What a run's log tells. Fractions are of a step with all of it off."""
    commits = [row for row in rows if row["kind"] == "commit"]
    steps = [
        Step(before["step"], after["t"] - before["t"], after["books_s"])
        for before, after in zip(commits, commits[1:], strict=False)
    ]
    pairs = paired(steps, request)
    off = statistics.median(without for _, without, _ in pairs)
    digests = [on / without - 1 for on, without, _ in pairs]
    whole = [(on + books) / without - 1 for on, without, books in pairs]
    audits = [step.wall_s for step in steps if step.number % request.audit_every == 0]
    usual = statistics.median(on + books for on, _, books in pairs)
    return {
        "overhead_fraction": statistics.median(whole),
        "overhead_interval": interval(whole),
        "digest_fraction": statistics.median(digests),
        "ledger_fraction": statistics.median(books / without for _, without, books in pairs),
        "audit_fraction": (statistics.median(audits) - usual) / request.audit_every / off,
        "step_s_on": usual,
        "step_s_off": off,
        "slices": request.slices,
        "shards": request.shards,
        "steps": len(steps),
        "pairs": len(pairs),
    }


def paired(steps: Sequence[Step], request: OverheadRequest) -> list[tuple[float, float, float]]:
    """Medians of neighbouring blocks: a step with digests and one without, both less the ledger, and the ledger's part.

    Steps with an audit, and those at the edge of a block, belong to neither.
    """
    blocks: dict[int, list[Step]] = {}
    for step in steps:
        if step.number % request.block and step.number % request.audit_every:
            blocks.setdefault(step.number // request.block, []).append(step)
    pairs = []
    for number in range(0, max(blocks, default=0), 2):
        on, off = blocks.get(number), blocks.get(number + 1)
        if number and on and off:  # the first pair is warming up
            with_all, without = (statistics.median(s.wall_s - s.books_s for s in block) for block in (on, off))
            pairs.append((with_all, without, statistics.median(step.books_s for step in on)))
    return pairs


def interval(values: Sequence[float]) -> list[float]:
    """95% of bootstrapped medians."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (RESAMPLES, len(values))), 1)
    return np.percentile(medians, (2.5, 97.5)).tolist()
