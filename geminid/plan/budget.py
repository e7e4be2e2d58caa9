"""`geminid plan budget`: a law, the best size and token count, what they cost, and whether the data suffices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from geminid import recipes
from geminid.plan import cost, fit, law, tokens
from geminid.plan.checks import Interval, has_place, not_negative, positive
from geminid.plan.requests import BudgetRequest

PERCENTILES = (2.5, 97.5)  # of the bootstrap: a 95% interval


@dataclass(frozen=True)
class Known:
    """The law in use, its bootstrap replicates (none for a published law), and what is reported of the fit."""

    law: law.Law
    replicates: Sequence[law.Law]
    runs: fit.Runs | None
    report: dict[str, Any]

    def interval(self, value: Callable[[law.Law], float]) -> list[float] | None:
        """95% of the replicates' values; None without replicates."""
        values = [value(replicate) for replicate in self.replicates]
        return np.percentile(values, PERCENTILES).tolist() if values else None


def plan_budget(request: BudgetRequest) -> dict[str, Any]:
    """The answer to a request, as `--json` prints it; ValueError for what cannot be.

    N_opt, D_opt: parameters and tokens; flops: FLOP; loss: nats a token; chip_days, days, money: [low, high];
    keys that end in _interval: 95% of the bootstrap, only with --fit.
    """
    if request.flops is None and request.quality_of is None and request.fit is None and request.recipe is None:
        raise ValueError("nothing to plan; give --flops F, --quality-of N, --fit CSV or --recipe NAME")
    if request.inference_tokens and request.quality_of is None:
        raise ValueError(
            f"--inference-tokens {request.inference_tokens:g} needs --quality-of N: as good as which model?"
        )
    not_negative("--inference-tokens", request.inference_tokens)
    not_negative("--seed", request.seed)
    positive("--epochs", request.epochs)
    if not 0 <= request.trim < 1:
        raise ValueError(f"--trim is {request.trim:g}; it must be 0 or above and below 1, such as 0.02")
    if request.replicates < 2:
        raise ValueError(f"--replicates is {request.replicates}; an error takes at least 2, better 1000")
    if request.fit is not None and request.law is not None:
        raise ValueError(f"--fit makes a law, --law {request.law} names one; give one of them")
    has_place(request.picture)
    known = _known(request)
    answer = {**asdict(known.law), **known.report}
    plan = None  # parameters, tokens, and the interval of the training FLOP
    if request.flops is not None:
        flops = positive("--flops", request.flops)
        answer |= _optimum(known, flops)
        plan = (answer["N_opt"], answer["D_opt"], Interval(flops, flops))
    if request.quality_of is not None:
        served = law.serve(known.law, positive("--quality-of", request.quality_of), request.inference_tokens)
        answer.setdefault("N_opt", served.params)  # of --flops, where that is given
        answer.setdefault("D_opt", served.tokens)
        answer |= _served(known, served, request.inference_tokens)
        spread = known.interval(lambda each: _training_flops(each, served.optimal_params, request.inference_tokens))
        training = law.TRAINING_FLOPS * served.params * served.tokens
        plan = (served.params, served.tokens, Interval(*(spread or (training, training))))
    answer |= _data(request, None if plan is None else plan[1])
    answer |= _cost(request, None if plan is None else plan[2])
    if request.picture is not None:
        from geminid.plan import pictures

        pictures.budget(request.picture, known.law, known.runs, plan and plan[:2])
    return answer


def _known(request: BudgetRequest) -> Known:
    if request.fit is None:
        # each paper's question by its own coefficients
        name = request.law or ("sardana" if request.inference_tokens and request.flops is None else "hoffmann")
        return Known(law.get(name), (), None, {"law": name, "objective": None, "se": None})
    every = fit.read_runs(request.fit)
    runs = every.trimmed(request.trim)
    found = fit.fit(runs)
    replicates = fit.bootstrap(runs, found.law, request.replicates, request.seed)
    ends = np.percentile([astuple(each) for each in replicates], PERCENTILES, axis=0).T.tolist()
    report = {
        "law": "fitted",
        "objective": found.objective,
        "se": fit.standard_errors(replicates),
        "interval": dict(zip(asdict(found.law), ends, strict=True)),
        "num_runs": len(runs),
        "num_trimmed": len(every) - len(runs),
    }
    return Known(found.law, replicates, runs, report)


def _optimum(known: Known, flops: float) -> dict[str, Any]:
    params, num_tokens = known.law.optimum(flops)
    answer: dict[str, Any] = {"flops": flops, "N_opt": params, "D_opt": num_tokens}
    answer["loss"] = float(known.law.loss(params, num_tokens))
    if known.replicates:
        answer["N_opt_interval"] = known.interval(lambda each: each.optimum(flops)[0])
        answer["D_opt_interval"] = known.interval(lambda each: each.optimum(flops)[1])
        answer["loss_interval"] = known.interval(lambda each: float(each.loss(*each.optimum(flops))))
    published = {f"approach {number}": frontier.optimum(flops) for number, frontier in law.APPROACHES.items()}
    published |= {name: each.optimum(flops) for name, each in law.LAWS.items()}
    return answer | {"published": {name: {"N_opt": n, "D_opt": d} for name, (n, d) in published.items()}}


def _served(known: Known, served: law.Served, inference_tokens: float) -> dict[str, Any]:
    of = served.optimal_params
    answer: dict[str, Any] = {
        "quality_of": {"N": of, "D": served.optimal_tokens, "flops": law.TRAINING_FLOPS * of * served.optimal_tokens},
        "inference_tokens": inference_tokens,
        "N_serve": served.params,
        "D_serve": served.tokens,
        "loss_serve": served.loss,
        "flops_serve": served.flops,
        "saving": served.saving,
        "saved_flops": served.optimal_flops - served.flops,
        "data_ratio": served.tokens / served.optimal_tokens,
    }
    for name in ("params", "tokens", "saving"):
        ends = known.interval(lambda each, name=name: getattr(law.serve(each, of, inference_tokens), name))
        if ends:
            answer[{"params": "N_serve", "tokens": "D_serve"}.get(name, name) + "_interval"] = ends
    if inference_tokens:
        laws = {name: law.serve(each, of, inference_tokens) for name, each in law.LAWS.items()}
        answer["by_law"] = {
            name: {"N": each.params, "D": each.tokens, "saving": each.saving} for name, each in laws.items()
        }
    optimal = {f"approach {number}": each.optimal_tokens(of) for number, each in law.APPROACHES.items()}
    optimal |= {name: each.optimal_tokens(of) for name, each in law.LAWS.items()}
    answer["optimal_for"] = {name: {"D": d, "flops": law.TRAINING_FLOPS * of * d} for name, d in optimal.items()}
    return answer


def _training_flops(each: law.Law, quality_of: float, inference_tokens: float) -> float:
    served = law.serve(each, quality_of, inference_tokens)
    return law.TRAINING_FLOPS * served.params * served.tokens


def _data(request: BudgetRequest, needed: float | None) -> dict[str, Any]:
    """Tokens of each modality, and whether there are enough."""
    answer: dict[str, Any] = {}
    rates = None
    if request.recipe is not None:
        rates = tokens.token_rates(recipes.get(request.recipe), request.video_fps)
        answer["tokens_per"] = rates
    if request.data:
        there = tokens.available(tokens.amounts(request.data), rates)
        answer["tokens_available"] = {**there, "total": math.fsum(there.values())}
        if needed is not None:
            tokens.check_enough(needed, there, request.epochs)
            answer["epochs_needed"] = needed / answer["tokens_available"]["total"]
    return answer


def _cost(request: BudgetRequest, flops: Interval | None) -> dict[str, Any]:
    if request.chip is None:
        if request.goodput != "1" or any(each is not None for each in (request.price, request.chips, request.mfu)):
            raise ValueError("a cost needs a chip; give --chip v4, v5e, v5p, v6e or its peak FLOP/s such as 989e12")
        return {}
    if flops is None:
        raise ValueError(f"the cost on {request.chip} is of a plan; give --flops F or --quality-of N")
    if request.mfu is None:
        raise ValueError(f"the cost on {request.chip} needs --mfu, such as --mfu 0.4:0.5")
    price = Interval.parse("--price", request.price) if request.price is not None else None
    mfu, goodput = cost.fraction("--mfu", request.mfu), cost.fraction("--goodput", request.goodput)
    rates = cost.Rates(cost.peak_flops(request.chip), mfu, goodput, price)
    return {"cost": {"chip": request.chip, **cost.cost(flops, rates, request.chips)}}
