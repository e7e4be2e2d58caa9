"""FLOP -> chip-days, days and money, as intervals: every input that is uncertain is a range."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from geminid.plan import chips
from geminid.plan.checks import Interval, number, positive

DAY_S = 86_400
DAY_H = 24


@dataclass(frozen=True)
class Rates:
    """How fast and how dear a chip works: peak FLOP/s, MFU and goodput in (0, 1], money a chip-hour."""

    peak_flops: float
    mfu: Interval
    goodput: Interval
    price: Interval | None


def peak_flops(chip: str) -> float:
    """Of a chip in the table, or the number that `chip` spells. FLOP/s."""
    return chips.CHIPS[chip].peak_flops if chip in chips.CHIPS else number("--chip (a TPU's name, or FLOP/s)", chip)


def fraction(name: str, text: str) -> Interval:
    """A range within (0, 1]."""
    interval = Interval.parse(name, text)
    if interval.high > 1:
        raise ValueError(f"{name} is '{text}'; it must be at most 1")
    return interval


def cost(flops: Interval, rates: Rates, num_chips: int | None) -> dict[str, object]:
    """Chip-days, with `num_chips` days, with a price money: each [low, high].

    chip-seconds = FLOP / (peak x MFU x goodput); the ends combine the ends of all ranges, so they are bounds and no
    confidence interval.
    """
    useful = rates.mfu.times(rates.goodput).scaled(rates.peak_flops)
    chip_days = flops.over(useful).scaled(1 / DAY_S)
    answer: dict[str, object] = {"flops": flops.ends(), "peak_flops": rates.peak_flops, "chip_days": chip_days.ends()}
    if num_chips is not None:
        answer["days"] = chip_days.scaled(1 / positive("--chips", num_chips)).ends()
    if rates.price:
        answer["money"] = chip_days.times(rates.price).scaled(DAY_H).ends()
    return answer | {
        name: list(asdict(value).values()) for name, value in (("mfu", rates.mfu), ("goodput", rates.goodput))
    }
