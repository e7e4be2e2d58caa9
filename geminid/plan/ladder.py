"""`geminid plan ladder`: small decoders are trained, the law is fitted, and a larger one is foretold before it trains.

N counts every parameter that a rung trains: decoder, tied embedding, projections. D counts positions, as 6 N D does.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geminid.config import DecoderConfig, Recipe
from geminid.plan import fit
from geminid.plan.checks import has_place
from geminid.plan.law import Law
from geminid.plan.requests import LadderRequest
from geminid.train.progress import bars
from geminid.train.rundir import RunDir, read_json, write_json
from geminid.train.stages import claim_data, sole_writer

# Of the recipe's own width; the held-out rung is 1. A factor of 2.1 in parameters is left to extrapolate for `demo`.
WIDTHS = (3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8)
COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
LOSSES = ("loss", "loss_text", "loss_codes")
FITTED = ("params", "tokens", "loss")
NEEDED = ("codec", "vision", "audio")
PERCENTILES = (2.5, 97.5)  # of the bootstrap: a 95% interval
Report = Callable[[int], None]


@dataclass(frozen=True)
class Rung:
    """One decoder, trained once and measured after each number of steps."""

    decoder: DecoderConfig
    steps: tuple[int, ...]  # ascending
    learning_rate: float

    @property
    def name(self) -> str:
        return str(self.decoder.width)

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(f"{self.name}x{count}" for count in self.steps)


@dataclass(frozen=True)
class Measured:
    """A row of `ladder.csv`. Losses: nats an answered id, on documents that no rung trains on."""

    rung: str
    params: int
    tokens: int
    loss: float
    loss_text: float
    loss_codes: float


class Trains(Protocol):
    """What trains rungs: `geminid.plan.rungs.Trainer`."""

    def num_params(self, rung: Rung) -> int: ...

    def __call__(self, rung: Rung, report: Report) -> list[Measured]:
        """A row for each number of steps; report is told the number of steps done."""
        ...


@dataclass(frozen=True)
class Plan:
    """The rungs that the law is fitted to, and the one that it foretells."""

    rungs: tuple[Rung, ...]
    held_out: Rung
    positions: int  # of one step


def scaled(decoder: DecoderConfig, factor: float) -> DecoderConfig:
    """The decoder with all its widths times `factor`: depth and heads stay, so that all rungs are of one family."""
    return dataclasses.replace(
        decoder,
        width=max(round(decoder.width * factor), 1),
        head_dim=max(2 * round(decoder.head_dim * factor / 2), 2),  # rotary positions turn pairs
        mlp_width=max(round(decoder.mlp_width * factor), 1),
        scan_layers=True,  # every rung is a program of its own: compiling a layer once takes a third of the time
    )


def plan_rungs(recipe: Recipe, steps: Sequence[int], held_out_steps: int) -> Plan:
    """Every width, the smallest first, measured after every number of steps, and the recipe's own decoder held out.

    The learning rate is the recipe's, times f^(-1/2) for a width of f times the recipe's own: Muon's steps have one
    size an entry whatever the width, so their largest singular value grows with the root of the width.
    """
    stage = recipe.joint.stage

    def rung(factor: float, counts: Sequence[int]) -> Rung:
        rate = stage.optimiser.learning_rate * factor**-0.5
        return Rung(scaled(recipe.decoder, factor), tuple(counts), rate)

    below = tuple(rung(factor, steps) for factor in WIDTHS)
    if len({each.decoder for each in below}) < len(WIDTHS):
        raise ValueError(f"'decoder.width' is {recipe.decoder.width}; too small for {len(WIDTHS)} smaller ones")
    return Plan(below, rung(1, [held_out_steps]), stage.batch * recipe.joint.row_length)


def ready(request: LadderRequest) -> RunDir:
    """The run whose encoders, codec and tokenizer a ladder stands on; ValueError says what makes them."""
    run = RunDir(request.run_dir or Path("runs") / request.recipe)
    missing = [] if run.tokenizer.is_file() else ["tokenizer"]
    missing += [name for name in NEEDED if not run.params(name).is_file()]
    if missing:
        where = f" --run-dir {request.run_dir}" if request.run_dir else ""
        raise ValueError(
            f"{run.path} has no finished {', '.join(missing)}; `geminid train {request.recipe}{where}` makes them (its"
            " joint stage is not needed)"
        )
    recipe = run.recipe()
    if recipe.name != request.recipe:
        raise ValueError(f"{run.path} holds a run of recipe '{recipe.name}'; give --recipe {recipe.name}")
    if recipe.joint.encoder_rate:
        raise ValueError(
            f"'joint.encoder_rate' of {run.path} is {recipe.joint.encoder_rate:g}; a ladder keeps soft tokens, which"
            " takes encoders that are held: 0"
        )
    return run


def steps_of(request: LadderRequest) -> list[int]:
    """The numbers of steps asked for, ascending."""
    words = request.steps.split(",")
    if not all(word.strip().isdecimal() for word in words) or len(steps := sorted({int(word) for word in words})) < 3:
        raise ValueError(
            f"--steps is '{request.steps}'; it must be at least three different whole numbers, such as 100,200,400: a"
            " power law of the tokens needs as many"
        )
    if steps[0] < 1 or request.held_out_steps <= steps[-1]:
        raise ValueError(
            f"--steps is '{request.steps}' and --held-out-steps {request.held_out_steps}; steps are 1 or more, and the"
            " held-out rung trains for more than all others"
        )
    return steps


def plan_ladder(request: LadderRequest, run: RunDir, dataset_path: Path) -> dict[str, Any]:
    """The answer to a request, as `--json` prints it; what is finished is not trained again.

    params: N; tokens: D; losses: nats an answered id; keys that end in _interval: 95% of the bootstrap.
    """
    has_place(request.picture)
    if request.replicates < 2:
        raise ValueError(f"--replicates is {request.replicates}; an error takes at least 2, better 1000")
    recipe = run.recipe()
    plan = plan_rungs(recipe, steps_of(request), request.held_out_steps)
    directory = run.path / "ladder"
    with sole_writer(directory / "lock"):
        claim(directory, recipe, plan)
        claim_data(run, dataset_path)

        def trainer() -> Trains:
            from geminid.plan.rungs import trainer_of
            from geminid.train.compiled import keep_compiled

            keep_compiled()
            return trainer_of(run, dataset_path)

        answer = climb(plan, directory, trainer, request.replicates, recipe.seed)
    write_json(directory / "ladder.json", answer)
    if request.picture is not None:
        from geminid.plan import pictures

        law = Law(**{name: answer[name] for name in COEFFICIENTS})
        pictures.ladder(request.picture, law, answer)
    return answer


def claim(directory: Path, recipe: Recipe, plan: Plan) -> None:
    """Notes of which recipe and which rungs a ladder is; ValueError when the directory holds another."""
    file = directory / "plan.json"
    wanted = {
        "recipe": recipe.fingerprint(),
        "rungs": {rung.name: asdict(rung) | {"steps": list(rung.steps)} for rung in (*plan.rungs, plan.held_out)},
    }
    begun = read_json(file)
    if begun and begun != wanted:
        raise ValueError(
            f"{directory} holds another ladder ({', '.join(begun['rungs'])}); remove it, or ask for the same"
        )
    write_json(file, wanted)


def climb(plan: Plan, directory: Path, trainer: Callable[[], Trains], replicates: int, seed: int) -> dict[str, Any]:
    """Trains what is not finished, foretells the held-out rung, and only then trains that.

    trainer(): makes what trains; called when there is something to train.
    """
    file, foretold = directory / "ladder.csv", directory / "prediction.json"
    below = [row for rung in plan.rungs for row in rung.rows]
    (last,) = plan.held_out.rows
    finished = read_finished(file)
    if not foretold.is_file():
        finished.pop(last, None)  # measured before it was foretold: no test
    left = [rung for rung in (*plan.rungs, plan.held_out) if not finished.keys() >= set(rung.rows)]
    if left:
        train = trainer()
        with bars({rung.name: rung.steps[-1] for rung in left}) as shown:
            for rung in left:
                if rung is plan.held_out and not foretold.is_file():
                    tokens = rung.steps[-1] * plan.positions
                    rows = [finished[name] for name in below]
                    write_json(foretold, foretell(rows, train.num_params(rung), tokens, replicates, seed))
                measured = train(rung, functools.partial(shown.update, rung.name))
                finished |= {each.rung: each for each in measured}
                write_finished(file, finished.values())
    prediction, held_out = read_json(foretold), finished[last]
    return {
        "rungs": [asdict(finished[name]) for name in below],
        **prediction,
        "measured_loss": held_out.loss,
        "error_fraction": prediction["predicted_loss"] / held_out.loss - 1,
        "held_out": asdict(held_out),
    }


def foretell(below: Sequence[Measured], params: int, tokens: int, replicates: int, seed: int) -> dict[str, Any]:
    """The law of the finished rungs, and what it says of `params` parameters trained on `tokens` positions."""
    runs = lately(below)
    found = fit.fit(runs)
    laws = fit.bootstrap(runs, found.law, replicates, seed)
    losses = [float(law.loss(params, tokens)) for law in laws]
    worst = float(np.abs(found.law.loss(runs.params, runs.tokens) / runs.loss - 1).max())
    return {
        **asdict(found.law),
        "objective": found.objective,
        "se": fit.standard_errors(laws),
        "largest_residual_fraction": worst,
        "backtest": backtest(below, params, tokens),
        "predicted_params": params,
        "predicted_tokens": tokens,
        "predicted_loss": float(found.law.loss(params, tokens)),
        "predicted_interval": np.percentile(losses, PERCENTILES).tolist(),
    }


def lately(rows: Sequence[Measured]) -> fit.Runs:
    """The rows of at least half of the most tokens.

    Early on the loss falls faster and faster, in the logarithms of both, and the law cannot: it bends the other way.
    """
    least = max(row.tokens for row in rows) / 2
    late = [row for row in rows if row.tokens >= least]
    return fit.Runs(*(np.array([getattr(row, name) for row in late], np.float64) for name in FITTED))


def backtest(rows: Sequence[Measured], params: int, tokens: int) -> dict[str, Any] | None:
    """What the same law says of the largest row, from rows that are as far below it as it is below the held-out one.

    None where too few rows are so far below.
    """
    last = max(rows, key=lambda row: (row.params, row.tokens))
    far = [row for row in rows if row.params * params <= last.params**2 and row.tokens * tokens <= last.tokens**2]
    try:
        predicted = float(fit.fit(lately(far)).law.loss(last.params, last.tokens))
    except ValueError:
        return None
    return {
        "rung": last.rung,
        "rows": len(far),
        "predicted_loss": predicted,
        "error_fraction": predicted / last.loss - 1,
    }


def read_finished(file: Path) -> dict[str, Measured]:
    """The rungs in a `ladder.csv`, by name; none where there is no file."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as rows:
        try:
            found = [
                Measured(row["rung"], int(row["params"]), int(row["tokens"]), *(float(row[name]) for name in LOSSES))
                for row in csv.DictReader(rows)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not as the ladder wrote it ({error}); remove it") from None
    return {each.rung: each for each in found}


def write_finished(file: Path, finished: Iterable[Measured]) -> None:
    """Complete or not at all; `geminid plan budget --fit` reads the file too."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as rows:
        writer = csv.writer(rows)
        writer.writerow(field.name for field in dataclasses.fields(Measured))
        writer.writerows(astuple(each) for each in finished)
    os.replace(partial, file)
