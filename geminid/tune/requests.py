"""What a tuning is asked for: plain values, no JAX."""

from __future__ import annotations

from dataclasses import dataclass

RANGES = {  # a caption is a line, a rank no width of a model
    "steps": (1, 10**9), "batch": (1, 65_536), "length": (2, 32_768), "rank": (1, 65_536), "evaluated": (1, 10**6),
    "seed": (0, 2**32 - 1),
}  # fmt: skip


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
        for name, (low, high) in RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{name} of a tuning is {value}; it must be {low:,} to {high:,}")
        if not 0 < self.alpha <= 1e6:
            raise ValueError(f"alpha is {self.alpha:g}; it must be above 0 and at most 1e6, such as twice the rank")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 to {self.steps - 1}, below the steps")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; it must be above 0 and at most 1")


TUNING = TuneConfig()
