"""Hurts a run of slices on purpose, with real signals at random moments, and measures how it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray

from geminid.runtime.checkpoints import found
from geminid.runtime.conductor import STATUS_S, Places
from geminid.runtime.faults import Harm, Point
from geminid.train.rundir import read_json

POLL_S = 0.02
TRAP_S = 20.0  # for an armed slice to come to its point, before it is killed from outside
WHOLE_S = 120.0  # for the fleet to be whole again
GAP_S = 1.0  # at most so long after that the next fault comes, where no interval is given


class Fault(StrEnum):
    """What is done to a run."""

    KILL = "kill"  # SIGKILL to a slice that computes, at a random moment or point of its work
    STOP = "stop"  # SIGSTOP to one
    CONTROLLER = "controller"  # SIGKILL to the controller
    STANDBY = "standby"  # SIGKILL to a slice that stands by
    RESTART = "restart"  # SIGKILL to all slices: what is left is the disk


@dataclass(frozen=True)
class Wound:
    """One fault. at_s: of the machine's monotonic clock; how: which point, or outside."""

    fault: Fault
    victim: str
    at_s: float
    how: str


@dataclass
class Saboteur:
    """Inflicts `faults`, one after another, each when the fleet is whole again; then stops the run.

    fleet_size: processes of a whole fleet. interval_s: between faults; None: soon after the fleet is whole.
    """

    places: Places
    namespace: str
    faults: Sequence[Fault]
    slices: int
    fleet_size: int
    seed: int
    interval_s: float | None = None
    wounds: list[Wound] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _offset: int = 0
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Saboteur:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join(TRAP_S)

    def _work(self) -> None:
        rng = random.Random(self.seed)
        due = time.monotonic()
        for fault in self.faults:
            if not self._wait(self._is_whole, WHOLE_S * 5 if not self.wounds else WHOLE_S):
                break
            due = max(time.monotonic() + rng.uniform(0.0, GAP_S), due + (self.interval_s or 0.0))
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            self._hurt(fault, rng)
        self._wait(self._is_whole, WHOLE_S)
        while not self._stopped.wait(POLL_S * 5):
            with suppress(Exception):  # the controller may be starting
                ray.get(ray.get_actor("conductor", self.namespace).stop.remote(), timeout=5)

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not self._stopped.wait(POLL_S) and time.monotonic() < end:
            if until():
                return True
        return False

    def rows(self) -> list[dict[str, Any]]:
        """The log so far; reads only what is new."""
        if self.places.events.is_file():
            with self.places.events.open() as file:
                file.seek(self._offset)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    self._rows.append(json.loads(line))
                    self._offset = file.tell()
        return self._rows

    def _last_team(self) -> list[str]:
        return next((row["team"] for row in reversed(self.rows()) if row["kind"] == "commit"), [])

    def _is_whole(self) -> bool:
        """All that are wanted have committed since the last fault, others are warm, a checkpoint is there if needed."""
        status = read_json(self.places.status)
        warm = [name for name, process in status.get("slices", {}).items() if process["pid"]]
        team = self._last_team()
        alive = len(warm) == self.fleet_size and len(team) == self.slices and set(team) <= set(warm)
        fresh = not self.wounds or self._is_past(self.wounds[-1])
        return alive and fresh and (Fault.RESTART not in self.faults or bool(found(self.places.checkpoints)))

    def _is_past(self, wound: Wound) -> bool:
        """A while after it a step was committed that was not before: also what went back to the disk has caught up."""
        commits = [row for row in self.rows() if row["kind"] == "commit"]
        before = max((row["step"] for row in commits if row["t"] <= wound.at_s), default=0)
        return bool(commits) and commits[-1]["t"] > wound.at_s + STATUS_S and commits[-1]["step"] > before

    def _hurt(self, fault: Fault, rng: random.Random) -> None:
        status = read_json(self.places.status)
        team = self._last_team()
        if fault is Fault.CONTROLLER:
            self._signal("controller", status["controller"], signal.SIGKILL, fault)
        elif fault is Fault.STOP:
            victim = rng.choice(team)
            self._signal(victim, status["slices"][victim]["pid"], signal.SIGSTOP, fault)
        elif fault is Fault.STANDBY:
            others = [name for name in status["slices"] if name not in team]
            victim = rng.choice(others)
            self._signal(victim, status["slices"][victim]["pid"], signal.SIGKILL, fault)
        elif fault is Fault.RESTART:
            for process in status["slices"].values():
                with suppress(ProcessLookupError):
                    os.kill(process["pid"], signal.SIGKILL)
            self.wounds.append(Wound(fault, "all", time.monotonic(), "outside"))
        else:
            self._kill(rng.choice(team), rng.choice([*Point, None]), status, rng)

    def _signal(self, victim: str, pid: int, what: signal.Signals, fault: Fault) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, what)
        self.wounds.append(Wound(fault, victim, time.monotonic(), "outside"))

    def _kill(self, victim: str, point: Point | None, status: dict[str, Any], rng: random.Random) -> None:
        """At a point of its own work, or from outside at a random moment."""
        pid, sprung = status["slices"][victim]["pid"], self.places.events.with_name("sprung.txt")
        if point is not None:
            sprung.unlink(missing_ok=True)
            with suppress(Exception):
                ray.get(ray.get_actor(victim, self.namespace).arm.remote(point, Harm.KILL, sprung), timeout=5)
            if self._wait(lambda: sprung.is_file() and sprung.read_text().endswith("\n"), TRAP_S):
                at_s = float(sprung.read_text().split()[0])
                self.wounds.append(Wound(Fault.KILL, victim, at_s, str(point)))
                return
        time.sleep(rng.uniform(0.0, 0.2))
        self._signal(victim, pid, signal.SIGKILL, Fault.KILL)


@dataclass(frozen=True)
class Healing:
    """How a run went on after a wound. recovery_s: to the first commit without the victim; None: there was none.

    lost_steps: committed steps that were computed again.
    """

    wound: Wound
    recovery_s: float | None
    lost_steps: int


def healing(rows: Sequence[dict[str, Any]], wound: Wound) -> Healing:
    """Read off the log of a run. After a restart a run has recovered when it is back where it was."""
    commits = [row for row in rows if row["kind"] == "commit"]
    before = max((row["step"] for row in commits if row["t"] <= wound.at_s), default=0)
    after = [row for row in commits if row["t"] > wound.at_s]
    controller = max((row["controller"] for row in commits if row["t"] <= wound.at_s), default=0)
    reached, lost = before, 0
    for row in after:
        lost = max(lost, reached + 1 - row["step"])
        reached = max(reached, row["step"])
        without = row["controller"] > controller if wound.fault is Fault.CONTROLLER else wound.victim not in row["team"]
        if without and (wound.fault is not Fault.RESTART or row["step"] > before):
            return Healing(wound, row["t"] - wound.at_s, lost)
    return Healing(wound, None, lost)
