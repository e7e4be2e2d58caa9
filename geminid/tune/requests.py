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

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("steps", "batch", "rank", "evaluated")}
        for name, value in {**counts, "length - 1": self.length - 1}.items():
            if value < 1:
                raise ValueError(f"{name} of a tuning is {value}; it must be 1 or more")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 to {self.steps - 1}, below the steps")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; it must be above 0 and at most 1")


TUNING = TuneConfig()
