"""The parametric scaling law and what follows from it.

L(N, D) = E + A / N^alpha + B / D^beta for N parameters, D tokens and a loss in nats a token (Hoffmann et al. 2022,
"Training Compute-Optimal Large Language Models", eq. 2), with training compute C = 6 N D FLOP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy.optimize import minimize_scalar

TRAINING_FLOPS = 6  # FLOP for each parameter and trained token
INFERENCE_FLOPS = 2  # for each parameter and served token


@dataclass(frozen=True)
class Law:
    """One set of coefficients, as published or as fitted."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: Any, tokens: Any) -> Any:
        """Nats a token; numbers or arrays that broadcast."""
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss at `flops` (Hoffmann et al. 2022, eq. 4)."""
        total = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        pairs = flops / TRAINING_FLOPS
        return ratio * pairs ** (self.beta / total), pairs ** (self.alpha / total) / ratio

    def optimal_tokens(self, params: float) -> float:
        """Tokens at which `params` is the compute-optimal size: alpha A / N^alpha = beta B / D^beta."""
        return (self.beta * self.B * params**self.alpha / (self.alpha * self.A)) ** (1 / self.beta)

    def tokens_to_reach(self, loss: float, params: float) -> float:
        """Tokens after which `params` parameters have that loss; infinity if they never do."""
        left = loss - self.E - self.A * params**-self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else math.inf


# Besiroglu et al. 2024 ("Chinchilla Scaling: A replication attempt") is Epoch AI's; Sardana & Frankle 2023 round anew.
LAWS = {
    "hoffmann": Law(1.6934, 406.4, 410.7, 0.33917, 0.28491),
    "hoffmann-rounded": Law(1.69, 406.4, 410.7, 0.34, 0.28),
    "sardana": Law(1.69, 406.4, 410.7, 0.336, 0.283),
    "epoch": Law(1.8169, 482.01, 2085.43, 0.3478, 0.3659),
}


def get(name: str) -> Law:
    """The published law called `name`; ValueError lists the known ones."""
    if name not in LAWS:
        raise ValueError(f"unknown law '{name}'; known: {', '.join(LAWS)}")
    return LAWS[name]


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal size as a power law, C = scale * N^exponent.

    Hoffmann et al. publish of approaches 1 and 2 only the exponents, .50 and .49 of N_opt in C; the scales, and the
    exponents' further digits, are least squares through the logarithms of the FLOPs columns of their tables 3 and A3.
    """

    scale: float
    exponent: float

    def flops(self, params: float) -> float:
        return self.scale * params**self.exponent

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens."""
        params = (flops / self.scale) ** (1 / self.exponent)
        return params, flops / (TRAINING_FLOPS * params)

    def optimal_tokens(self, params: float) -> float:
        return self.flops(params) / (TRAINING_FLOPS * params)


APPROACHES = {1: Frontier(103.524, 2.00763), 2: Frontier(51.6117, 2.04103)}


@dataclass(frozen=True)
class Served:
    """The cheapest model over its life. FLOP counts include training and inference."""

    params: float
    tokens: float
    flops: float
    loss: float
    optimal_params: float  # the compute-optimal model of the same loss
    optimal_tokens: float
    optimal_flops: float

    @property
    def saving(self) -> float:
        """Share of the compute-optimal model's FLOP."""
        return 1 - self.flops / self.optimal_flops


def serve(law: Law, quality_of: float, inference_tokens: float) -> Served:
    """Least 6 N D + 2 N T at the loss of `quality_of` compute-optimal parameters (Sardana & Frankle 2023, eq. 2).

    quality_of: parameters. inference_tokens: T, 0 or more. More parameters than compute-optimal cost more in both
    terms, so the answer lies between the smallest model that can reach the loss at all and that one.
    """
    optimal_tokens = law.optimal_tokens(quality_of)
    loss = float(law.loss(quality_of, optimal_tokens))

    def flops(params: float) -> float:
        tokens = law.tokens_to_reach(loss, params)
        return params * (TRAINING_FLOPS * tokens + INFERENCE_FLOPS * inference_tokens)

    params = quality_of
    if inference_tokens:
        smallest = (law.A / (loss - law.E)) ** (1 / law.alpha)
        bounds = (math.log(smallest), math.log(quality_of))
        best = minimize_scalar(lambda x: flops(math.exp(x)), bounds=bounds, method="bounded", options={"xatol": 1e-9})
        params = min(math.exp(best.x), quality_of, key=flops)
    return Served(
        params,
        law.tokens_to_reach(loss, params),
        flops(params),
        loss,
        quality_of,
        optimal_tokens,
        flops(quality_of),
    )
