"""Fits the scaling law to finished runs: Hoffmann et al. 2022, approach 3 (section 3.3), with bootstrap errors.

n runs: params N, tokens D and loss L, each float64 [n]. The objective is the sum over runs of the Huber loss
(delta 1e-3) of log L(N, D) - log L. Approach 3 is the one to prefer: parabolas through IsoFLOP profiles are biased.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, nnls

from geminid.plan.law import TRAINING_FLOPS, Law

HUBER_DELTA = 1e-3  # nats of log loss, as Hoffmann et al.
NUM_STARTS = 5  # of the grid's cells go on to L-BFGS
NUM_COEFFICIENTS = 5
# the spellings of a column that are understood; Epoch AI's file has the last ones
COLUMNS = {
    "params": ("params", "Model Size"),
    "tokens": ("tokens",),
    "flops": ("flops", "Training FLOP"),
    "loss": ("loss",),
}


@dataclass(frozen=True)
class Runs:
    """Finished runs: params, tokens, loss (nats a token), float64 [n] each."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def trimmed(self, share: float) -> Runs:
        """Without the given share of runs, fewest tokens a parameter first: the law is not of runs hardly begun."""
        order = np.argsort(self.tokens / self.params, kind="stable")
        kept = np.sort(order[round(share * len(self)) :])
        return Runs(self.params[kept], self.tokens[kept], self.loss[kept])


@dataclass(frozen=True)
class Fit:
    """The law, and the objective that it reaches."""

    law: Law
    objective: float


def read_runs(path: Path) -> Runs:
    """A CSV with a header: `params`, `tokens` or `flops` (= 6 N D), `loss`; other columns are ignored.

    ValueError names the line and what is wrong with it.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a CSV file: {error}; it needs a header with params, tokens, loss"
            ) from None
    header = reader.fieldnames or []
    found = {
        name: next((spelling for spelling in known if spelling in header), None) for name, known in COLUMNS.items()
    }
    amount = "tokens" if found["tokens"] else "flops"
    missing = [name for name in ("params", amount, "loss") if not found[name]]
    if missing:
        have = ", ".join(str(name) for name in header) or "none"
        raise ValueError(
            f"{path} has no column {' and none '.join(missing)}; it has {have}; needs params, tokens, loss"
        )
    columns = {
        name: np.array([_value(path, line, str(found[name]), row) for line, row in enumerate(rows, 2)], np.float64)
        for name in ("params", amount, "loss")
    }
    params = columns["params"]
    return Runs(
        params, columns[amount] if amount == "tokens" else columns[amount] / (TRAINING_FLOPS * params), columns["loss"]
    )


def _value(path: Path, line: int, column: str, row: Mapping[str, str | None]) -> float:
    text = row[column]
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{path}, line {line}: {column} is '{text or ''}'; it must be a finite number above 0")
    return value


def fit(runs: Runs) -> Fit:
    """The law of least objective: variable projection over a grid of exponents, then L-BFGS on all coefficients.

    ValueError where the runs cannot tell the coefficients apart.
    """
    if len(runs) <= NUM_COEFFICIENTS:
        raise ValueError(f"{len(runs)} runs cannot settle {NUM_COEFFICIENTS} coefficients; give at least 6, better 20")
    for name, values in (("params", runs.params), ("tokens", runs.tokens)):
        if (count := len(np.unique(values))) < 3:
            raise ValueError(f"the runs have {count} different values of {name}; a power law needs at least 3")
    exponents = np.arange(0.1, 1.0, 0.1)
    starts = [_project(runs, alpha, beta) for alpha in exponents for beta in exponents]
    weights = np.ones(len(runs))
    starts.sort(key=lambda start: _objective(start, runs, weights)[0])
    return min((_descend(start, runs, weights) for start in starts[:NUM_STARTS]), key=lambda found: found.objective)


def bootstrap(runs: Runs, law: Law, replicates: int, seed: int) -> list[Law]:
    """Laws of `replicates` resamples of the runs, each with replacement, from `law` on (Efron 1979)."""
    rng = np.random.default_rng(seed)
    start = _coordinates(law)
    drawn = (rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs))) for _ in range(replicates))
    return [_descend(start, runs, counts.astype(np.float64)).law for counts in drawn]


def standard_errors(laws: list[Law]) -> dict[str, float]:
    """Standard deviation of each coefficient over bootstrap replicates."""
    deviations = np.std([astuple(law) for law in laws], axis=0, ddof=1)
    return dict(zip(("E", "A", "B", "alpha", "beta"), deviations.tolist(), strict=True))


def _coordinates(law: Law) -> np.ndarray:
    """float64 [5]: log E, log A, log B, alpha, beta; the logarithms keep the three positive."""
    return np.array([math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta])


def _project(runs: Runs, alpha: float, beta: float) -> np.ndarray:
    """Coordinates of the best E, A, B for given exponents: linear, by least squares of the relative error."""
    terms = np.stack([np.ones(len(runs)), runs.params**-alpha, runs.tokens**-beta], axis=1)
    scale = terms.max(axis=0)
    solution, _ = nnls(terms / scale / runs.loss[:, None], np.ones(len(runs)))
    return np.array([*np.log(np.maximum(solution, 1e-6) / scale), alpha, beta])  # 1e-6: a logarithm needs more than 0


def _objective(x: np.ndarray, runs: Runs, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted Huber sum at the coordinates x, and its gradient float64 [5]."""
    log_n, log_d = np.log(runs.params), np.log(runs.tokens)
    terms = np.stack([np.full(len(runs), x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d])
    largest = terms.max(axis=0)
    powers = np.exp(terms - largest)
    total = powers.sum(axis=0)
    error = largest + np.log(total) - np.log(runs.loss)
    clipped = np.clip(error, -HUBER_DELTA, HUBER_DELTA)
    value = weights @ (clipped * (error - clipped / 2))  # both branches of the Huber loss in one
    slope = (weights * clipped) * (powers / total)
    e, a, b = slope.sum(axis=1)
    return float(value), np.array([e, a, b, -slope[1] @ log_n, -slope[2] @ log_d])


def _descend(start: np.ndarray, runs: Runs, weights: np.ndarray) -> Fit:
    def scaled(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _objective(x, runs, weights)
        return value / HUBER_DELTA, gradient / HUBER_DELTA  # of order 1: the tolerances below are absolute

    options = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(scaled, start, jac=True, method="L-BFGS-B", options=options)
    e, a, b = np.exp(found.x[:3]).tolist()
    return Fit(Law(e, a, b, float(found.x[3]), float(found.x[4])), float(found.fun) * HUBER_DELTA)
