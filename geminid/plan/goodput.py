"""How much of a long run's time is useful: `geminid plan goodput`.

The same controller as in real runs, under simulated months of failing SuperPods (`pods.py`), with three strategies.
Every number is a simulation's; Young's and Daly's checkpoint intervals stand beside the simulated optimum.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from geminid.plan.pods import Pods, Strategy
from geminid.plan.rates import CUBES_A_POD, Inputs
from geminid.runtime.goodput import Activity

# two-sided 95% quantiles of Student's t for four samples a seed, by seeds: 3, 7, 11, ... degrees of freedom
STUDENT = {1: 3.182, 2: 2.365, 3: 2.201, 4: 2.131, 5: 2.093, 6: 2.069, 7: 2.052, 8: 2.040}
SCAN_INTERRUPTIONS = 25  # a table's runs are as long as it takes to see so many, at most all days
INTERVALS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)  # of Young's
SPARES = (0, 1, 2, 3, 4, 6, 8)
VARIED = (
    *("rates.machine", "rates.cable", "rates.sdc", "detection_s", "reconfigure_s", "restart_s", "warm_restart_s"),
    *("fetch_s", "restore_s", "save_s", "repair_h", "shards_a_pod"),
)


def plan_goodput(inputs: Inputs, num_seeds: int = 2, strategy: Strategy = Strategy.ELASTIC) -> dict[str, Any]:
    """What the run will lose, to what, and what would help.

    `goodput` is the chosen strategy's, `goodput_static` the same without rewiring and spares: a pod that lost a cube
    waits for its repair. Intervals are 95%, Student's t over the quarters of all seeds' runs (a quarter is much longer
    than a repair, so quarters are independent samples). Shares of time are of pod seconds. Raises ValueError where
    the number of seeds is out of range.
    """
    if num_seeds not in STUDENT:
        raise ValueError(f"{num_seeds} seeds cannot be simulated; give 1 to {max(STUDENT)}")
    seeds = range(num_seeds)
    summaries = {name: _summary([_simulate(inputs, name, seed) for seed in seeds]) for name in Strategy}
    short = dataclasses.replace(inputs, days=_scan_days(inputs))
    longer = dataclasses.replace(inputs, days=min(inputs.days, 12 * short.days))
    static = _summary([_simulate(longer, strategy, seed, rewired=False) for seed in seeds])
    chosen = summaries[strategy]
    return {
        "goodput": chosen["goodput"],
        "goodput_interval": chosen["interval"],
        "goodput_static": static["goodput"],
        "strategy": str(strategy),
        "strategies": {str(name): summary for name, summary in summaries.items()},
        "interruptions_a_day": inputs.interruptions_a_day,
        "mean_time_between_s": inputs.mean_time_between_s,
        "checkpoint": checkpoint_intervals(inputs),
        "spares": spare_cubes(short, strategy),
        "sensitivity": sensitivity(short),
        "days": {"strategies": inputs.days, "static": longer.days, "tables": short.days},
        "inputs": dataclasses.asdict(inputs),
    }


def strategy_named(name: str) -> Strategy:
    """Raises ValueError for another name."""
    if name not in list(Strategy):
        raise ValueError(f"unknown strategy {name!r}; known: {', '.join(Strategy)}")
    return Strategy(name)


def checkpoint_intervals(inputs: Inputs) -> dict[str, Any]:
    """Goodput of the disk strategy by seconds between checkpoints, and the best beside Young's and Daly's."""
    young = inputs.young_interval_s
    if math.isinf(young) or young == 0:
        return {"young_s": young, "daly_s": inputs.daly_interval_s, "best_s": young, "goodput": {}}
    long = dataclasses.replace(inputs, days=min(inputs.days, 3 * _scan_days(inputs)))
    found = {
        round(young * factor): statistics.fmean(_goodput(long, Strategy.DISK, seed, young * factor) for seed in (0, 1))
        for factor in INTERVALS
    }
    best = max(found, key=lambda interval: found[interval])
    return {"young_s": young, "daly_s": inputs.daly_interval_s, "best_s": best, "goodput": found}


def spare_cubes(inputs: Inputs, strategy: Strategy) -> dict[str, Any]:
    """What a pod yields by the number of its cubes that are kept as spares: the share in use times goodput."""
    found = {}
    for spares in sorted({*SPARES, inputs.spare_cubes}):
        varied = dataclasses.replace(inputs, spare_cubes=spares)
        goodput = statistics.fmean(_goodput(varied, strategy, seed) for seed in (0, 1))
        found[spares] = {"goodput": goodput, "yield": goodput * (1 - spares / CUBES_A_POD)}
    best = max(found, key=lambda spares: found[spares]["yield"])
    return {"best": best, "by_number": found}


def sensitivity(inputs: Inputs) -> dict[str, dict[str, tuple[float, float]]]:
    """Goodput of each strategy with one input at half and at twice its value; the same faults where it can be."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name in VARIED:
        group, _, field = name.rpartition(".")
        half, twice = (_scaled(inputs, group, field, factor) for factor in (0.5, 2.0))
        table[name] = {str(s): (_goodput(half, s, 0), _goodput(twice, s, 0)) for s in Strategy}
    table["as given"] = {str(s): (_goodput(inputs, s, 0),) * 2 for s in Strategy}
    return table


def _scaled(inputs: Inputs, group: str, field: str, factor: float) -> Inputs:
    holder: Any = inputs.rates if group else inputs
    value = getattr(holder, field)
    scaled = max(1, round(value * factor)) if isinstance(value, int) else value * factor
    changed = dataclasses.replace(holder, **{field: scaled})
    return dataclasses.replace(inputs, rates=changed) if group else changed


def _scan_days(inputs: Inputs) -> float:
    daily = inputs.interruptions_a_day
    return min(inputs.days, SCAN_INTERRUPTIONS / daily) if daily else inputs.days


def _goodput(inputs: Inputs, strategy: Strategy, seed: int, interval_s: float | None = None) -> float:
    return Pods(inputs, strategy, seed, interval_s).goodput()


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Of one simulation; shares are of the pods' time."""

    goodput: float
    quarters: list[float]
    num_interruptions: int
    shares: dict[Activity, float]


def _simulate(inputs: Inputs, strategy: Strategy, seed: int, rewired: bool = True) -> _Outcome:
    pods = Pods(inputs, strategy, seed, rewired=rewired)
    goodput = pods.goodput()
    devices = [f"pod{k}" for k in range(inputs.pods)]  # the process that only keeps a copy is none of them
    totals = pods.ledger.totals(pods.now, devices)
    shares = {activity: ns / (inputs.pods * pods.now) for activity, ns in totals.items()}
    return _Outcome(goodput, pods.quarters, pods.num_interruptions, shares)


def _summary(outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    mean = statistics.fmean(outcome.goodput for outcome in outcomes)
    samples = [quarter for outcome in outcomes for quarter in outcome.quarters]
    half = STUDENT[len(outcomes)] * statistics.stdev(samples) / math.sqrt(len(samples))
    shares = {str(a): statistics.fmean(outcome.shares[a] for outcome in outcomes) for a in Activity}
    return {
        "goodput": mean,
        "interval": (max(0.0, mean - half), min(1.0, mean + half)),
        "interruptions": statistics.fmean(outcome.num_interruptions for outcome in outcomes),
        "shares": {name: share for name, share in shares.items() if share},
    }
