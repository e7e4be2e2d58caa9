"""Fits the scaling law to finished runs: Hoffmann et al. 2022, approach 3 (section 3.3), with bootstrap errors.

n runs: params N, tokens D and loss L, each float64 [n]. The objective is the sum over runs of the Huber loss
(delta 1e-3) of log L(N, D) - log L. Approach 3 is the one to prefer: parabolas through IsoFLOP profiles are biased.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, nnls

from geminid.plan.law import TRAINING_FLOPS, Law

HUBER_DELTA = 1e-3  # nats of log loss, as Hoffmann et al.
NUM_STARTS = 5  # of the grid's cells go on to L-BFGS
NUM_COEFFICIENTS = 5
EXPONENTS = (0.05, 1.5)  # the range that is searched
LEAST_LOG_TERM = -10.0  # of a term at the mean run, log nats
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
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            header, rows = reader.fieldnames or [], list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a CSV file: {error}; it needs a header with params, tokens, loss"
            ) from None
    found = {
        name: next((spelling for spelling in known if spelling in header), None) for name, known in COLUMNS.items()
    }
    amount = "tokens" if found["tokens"] else "flops"
    missing = [name.replace("flops", "tokens or flops") for name in ("params", amount, "loss") if not found[name]]
    if missing:
        have = ", ".join(str(name) for name in header) or "none"
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {have}; needs params, tokens, loss")
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
    problem = _Problem.of(runs)
    grid = np.arange(0.1, 1.0, 0.1)
    starts = [problem.project(alpha, beta) for alpha in grid for beta in grid]
    starts.sort(key=lambda start: problem.objective(start)[0])
    best = min((problem.descend(start) for start in starts[:NUM_STARTS]), key=lambda found: found.objective)
    for name, value in (("alpha", best.law.alpha), ("beta", best.law.beta)):
        if not EXPONENTS[0] < value < EXPONENTS[1]:
            raise ValueError(
                f"the runs do not settle {name}: {value:g} is the end of what is searched; give runs of more different "
                f"{'params' if name == 'alpha' else 'tokens'}, or better measured ones"
            )
    return best


def bootstrap(runs: Runs, law: Law, replicates: int, seed: int) -> list[Law]:
    """Laws of `replicates` resamples of the runs, each with replacement, from `law` on (Efron 1979)."""
    rng = np.random.default_rng(seed)
    problem = _Problem.of(runs)
    start = problem.coordinates(law)
    drawn = (rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs))) for _ in range(replicates))
    return [replace(problem, weights=counts.astype(np.float64)).descend(start).law for counts in drawn]


def standard_errors(laws: list[Law]) -> dict[str, float]:
    """Standard deviation of each coefficient over bootstrap replicates."""
    deviations = np.std([astuple(law) for law in laws], axis=0, ddof=1)
    return dict(zip(("E", "A", "B", "alpha", "beta"), deviations.tolist(), strict=True))


@dataclass(frozen=True)
class _Problem:
    """The runs in logarithms, float64 [n] each; log_n and log_d less their means.

    Coordinates x, float64 [5]: log E, the logarithms of the other two terms at the mean run, alpha, beta. Logarithms
    keep the terms positive; at the mean run they hardly depend on the exponents, which makes the descent short.
    """

    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray
    weights: np.ndarray  # how often each run counts
    mean_log_n: float
    mean_log_d: float

    @classmethod
    def of(cls, runs: Runs) -> _Problem:
        log_n, log_d = np.log(runs.params), np.log(runs.tokens)
        mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - mean_n, log_d - mean_d, np.log(runs.loss), np.ones(len(runs)), mean_n, mean_d)

    def coordinates(self, law: Law) -> np.ndarray:
        a = math.log(law.A) - law.alpha * self.mean_log_n
        b = math.log(law.B) - law.beta * self.mean_log_d
        return np.array([math.log(law.E), a, b, law.alpha, law.beta])

    def law(self, x: np.ndarray) -> Law:
        e, a, b, alpha, beta = x.tolist()
        return Law(
            math.exp(e), math.exp(a + alpha * self.mean_log_n), math.exp(b + beta * self.mean_log_d), alpha, beta
        )

    def project(self, alpha: float, beta: float) -> np.ndarray:
        """Coordinates of the best terms for given exponents: linear, by least squares of the relative error."""
        terms = np.stack([np.ones_like(self.log_n), np.exp(-alpha * self.log_n), np.exp(-beta * self.log_d)], axis=1)
        solution, _ = nnls(terms / np.exp(self.log_loss)[:, None], np.ones(len(terms)))
        return np.array([*np.log(np.maximum(solution, math.exp(LEAST_LOG_TERM))), alpha, beta])

    def objective(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Weighted Huber sum at x, and its gradient float64 [5]."""
        terms = np.stack([np.full_like(self.log_n, x[0]), x[1] - x[3] * self.log_n, x[2] - x[4] * self.log_d])
        largest = terms.max(axis=0)
        powers = np.exp(terms - largest)
        total = powers.sum(axis=0)
        error = largest + np.log(total) - self.log_loss
        clipped = np.clip(error, -HUBER_DELTA, HUBER_DELTA)
        value = self.weights @ (clipped * (error - clipped / 2))  # both branches of the Huber loss in one
        slope = self.weights * clipped * (powers / total)
        return float(value), np.array([*slope.sum(axis=1), -slope[1] @ self.log_n, -slope[2] @ self.log_d])

    def descend(self, start: np.ndarray) -> Fit:
        """L-BFGS within bounds that only runs which settle nothing would reach."""

        def scaled(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.objective(x)
            return value / HUBER_DELTA, gradient / HUBER_DELTA  # of order 1: the tolerances below are absolute

        term = (LEAST_LOG_TERM, float(self.log_loss.max()) + 1)
        options = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10}
        bounds = [term] * 3 + [EXPONENTS] * 2
        found = minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return Fit(self.law(found.x), float(found.fun) * HUBER_DELTA)
