"""Mistakes in a request: one line that holds the number and what to do."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST = 1e40  # of anything counted here; more is a mistake, and powers of it leave the floating-point range


def positive(name: str, value: float) -> float:
    """`value` if it is 1 / LARGEST to LARGEST; ValueError otherwise."""
    if not 0 < value <= LARGEST:
        raise ValueError(f"{name} is {value:g}; it must be above 0 and at most {LARGEST:g}")
    if value < 1 / LARGEST:
        raise ValueError(f"{name} is {value:g}; it must be at least {1 / LARGEST:g}")
    return value


def not_negative(name: str, value: float) -> float:
    """`value` if it is 0 to LARGEST; ValueError otherwise."""
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{name} is {value:g}; it must be 0 or above, at most {LARGEST:g}")
    return value


def share(name: str, value: float) -> float:
    """`value` if it lies in (0, 1]; ValueError otherwise."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value:g}; it must be above 0 and at most 1")
    return value


def number(name: str, text: str) -> float:
    """The positive number that `text` spells."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is '{text}'; it must be a number such as 0.5 or 1e12") from None
    return positive(name, value)


def split(name: str, text: str, separator: str, form: str) -> Sequence[str]:
    """The parts of a text of the form `form`, as many as that has."""
    parts = text.split(separator)
    if len(parts) != len(form.split(separator)) or not all(parts):
        raise ValueError(f"{name} '{text}' is not of the form {form}")
    return parts


def has_place(picture: Path | None) -> None:
    """An OSError where a picture cannot be written: before the work, not after it."""
    if picture is None:
        return
    if not picture.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(picture.parent))
    if picture.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory; give the name of a file in it", str(picture))


@dataclass(frozen=True)
class Interval:
    """Two positive numbers, low <= high, between which the truth is expected."""

    low: float
    high: float

    @classmethod
    def parse(cls, name: str, text: str) -> Interval:
        """`0.4` or `0.4:0.5`."""
        ends = [number(name, end) for end in text.split(":")]
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise ValueError(f"{name} is '{text}'; it must be one number, or LOW:HIGH with LOW at most HIGH")
        return cls(ends[0], ends[-1])

    def times(self, other: Interval) -> Interval:
        return Interval(self.low * other.low, self.high * other.high)

    def over(self, other: Interval) -> Interval:
        return Interval(self.low / other.high, self.high / other.low)

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.high * factor)

    def ends(self) -> list[float]:
        return [self.low, self.high]
