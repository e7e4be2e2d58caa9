"""What a tuning is asked for: plain values, no JAX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TuneConfig:
    """How long and how much: LoRA (Hu et al. 2021) on captions."""

    steps: int = 100
    batch: int = 16  # captions of a step
    length: int = 32  # ids of a caption at most
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    evaluated: int = 32  # held-out captions of each language
    seed: int = 0


TUNING = TuneConfig()
