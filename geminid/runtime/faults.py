"""Faults to inject, for tests and soaks: real signals, at points within the work or from outside.

A slice's trap is not armed in a normal run. `Trap.spring(point)` stands where something may break.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np


class Point(StrEnum):
    """Where in the work of a slice."""

    GRADIENT = "mid-gradient"
    EXCHANGE = "mid-exchange"
    UPDATE = "mid-update"
    COPY = "mid-copy"  # giving or taking a state
    SAVE = "mid-save"


class Harm(StrEnum):
    """What happens there."""

    KILL = "kill"  # SIGKILL
    STOP = "stop"  # SIGSTOP: hangs
    SLOW = "slow"  # every time, by `SLOW_S`
    DROP = "drop"  # a connection breaks, once
    MEMORY = "memory"  # no more memory


SLOW_S = 0.5


class Dropped(ConnectionError):
    """An injected broken connection."""


@dataclass
class Trap:
    """At most one fault that waits for its point. log: where it says when it sprang, on time.monotonic()'s scale."""

    log: Path | None = None
    point: Point | None = None
    harm: Harm | None = None

    def arm(self, point: Point, harm: Harm) -> None:
        self.point, self.harm = point, harm

    def spring(self, point: Point) -> None:
        """Does what was armed for this point; once, except slowness."""
        if point is not self.point:
            return
        harm = self.harm
        if harm is Harm.SLOW:
            time.sleep(SLOW_S)
            return
        self.point = None
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{time.monotonic()} {point}\n")
        if harm is Harm.DROP:
            raise Dropped(f"injected at {point}")
        if harm is Harm.MEMORY:
            raise MemoryError(f"injected at {point}")
        os.kill(os.getpid(), signal.SIGKILL if harm is Harm.KILL else signal.SIGSTOP)


def flipped(array: np.ndarray, byte: int, bit: int) -> np.ndarray:
    """A copy of `array` with one bit of one byte turned over."""
    copied = np.array(array, copy=True)
    copied.reshape(-1).view(np.uint8)[byte] ^= np.uint8(1 << bit)
    return copied
