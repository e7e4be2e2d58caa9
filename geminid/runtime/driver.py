"""Carries the controller's decisions out: events in, commands out, deadlines, ledger, curve, log.

All that is specific to how slices are reached is behind `Transport`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.goodput import Bookkeeper
from geminid.runtime.messages import Copy
from geminid.runtime.recovery import Phase
from geminid.runtime.slice import Answer
from geminid.runtime.timeline import Spans
from geminid.runtime.work import metrics_of
from geminid.train.rundir import read_rows


class Transport(Protocol):
    """How the driver reaches slices. Each start of a process has a new name."""

    def send(self, command: m.ToSlice) -> None: ...

    def poll(self, timeout_s: float) -> Iterable[Answer]:
        """What has happened: answers, `Hello`, `Lost`. Returns at the first, or after `timeout_s`."""
        ...

    def give_up(self, name: str) -> None:
        """End the process of a slice that was dismissed and never came back."""
        ...


@dataclass
class Log:
    """events.jsonl and the curve of a run of slices, appended to as it goes.

    A row of the log has "t", seconds of the machine's monotonic clock; a commit's has "books_s", what the ledger cost.
    """

    events: Path
    curve: Path
    log_every: int
    num_steps: int
    incarnation: int = 0
    last: int | None = None  # step of the curve's last row; None: not looked at yet

    def __post_init__(self) -> None:
        for path in (self.events, self.curve):
            path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, kind: str, **what: Any) -> None:
        with self.events.open("a") as file:
            row = {"t": time.monotonic(), "controller": self.incarnation, "kind": kind, **what}
            file.write(json.dumps(row) + "\n")

    def committed(self, copy: Copy, metrics: Mapping[str, np.float32]) -> None:
        """A row of the curve every `log_every` steps; rows of later steps are of a time that was rolled back."""
        if copy.step % self.log_every and copy.step != self.num_steps:
            return
        if self.last is None or self.last >= copy.step:
            self._cut(copy.step)
        with self.curve.open("a") as file:
            file.write(json.dumps({"step": copy.step, **metrics_of(metrics)}) + "\n")
        self.last = copy.step

    def _cut(self, step: int) -> None:
        """Rows before `step` stay, and whole rows only."""
        kept = [row for row in read_rows(self.curve) if row["step"] < step]
        partial = self.curve.with_name(self.curve.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self.curve)


@dataclass(frozen=True)
class Ending:
    """How a run ended: `copy` when all steps are committed, else `reason`."""

    copy: Copy | None
    reason: str = ""


PATIENCE_S = 10.0  # for a dismissed slice to say Hello, before its process is ended


class Driver:
    """Runs one controller over one transport.

    report(done) is called with the number of committed steps; where stopping(done) is true, the run ends there.
    """

    def __init__(
        self,
        controller: Controller,
        transport: Transport,
        log: Log,
        spans: Spans,
        report: Callable[[int], None] = lambda done: None,
        stopping: Callable[[int], bool] = lambda done: False,
    ) -> None:
        self.controller, self.transport, self.log, self.report = controller, transport, log, report
        self.spans, self.stopping = spans, stopping
        self.books = Bookkeeper(spans.ledger, controller.policy.slices)
        self._deadlines: dict[int, float] = {}  # by wait, on time.monotonic()'s scale
        self._dismissed: dict[str, float] = {}  # slice -> when its process is ended
        self._metrics: dict[str, np.float32] = {}
        self.findings: Counter[str] = Counter()
        self._books_s = 0.0  # spent on the ledger since the last commit
        self._ending: Ending | None = None

    def run(self, start: m.Start) -> Ending:
        """To the end of the run."""
        self.handle(Answer(start))
        while self._ending is None:
            for answer in self.transport.poll(self._until_next()):
                self.handle(answer)
            self._expire()
        self.spans.close(time.monotonic_ns())
        return self._ending

    def _until_next(self) -> float:
        """Seconds to the next deadline; a wait that the controller has dropped needs no timer."""
        self._deadlines = {wait: at for wait, at in self._deadlines.items() if wait in self.controller.waits}
        first = min([*self._deadlines.values(), *self._dismissed.values()], default=time.monotonic() + 1.0)
        return max(0.0, first - time.monotonic())

    def _expire(self) -> None:
        now = time.monotonic()
        for wait, at in list(self._deadlines.items()):
            if at <= now and self._deadlines.pop(wait, None) is not None:
                self.handle(Answer(m.Expired(wait)))
        for name, at in list(self._dismissed.items()):
            if at <= now:
                del self._dismissed[name]
                self.transport.give_up(name)

    def handle(self, answer: Answer) -> None:
        """One event: what the controller decides about it is done."""
        event = answer.event
        if isinstance(event, m.Hello | m.Lost):
            self._dismissed.pop(event.slice, None)
            self.log.note("hello" if isinstance(event, m.Hello) else "lost", slice=event.slice)
        if isinstance(event, m.Updated) and answer.metrics is not None:
            self._metrics = answer.metrics
        was = self.controller.phase
        commands = self.controller.on(event)
        now = time.monotonic_ns()
        self.books.on(now, self.controller, event, commands)
        self._books_s += (time.monotonic_ns() - now) / 1e9
        for command in commands:
            self._carry_out(command)
        commits = [command for command in commands if isinstance(command, m.Commit)]
        if commits:
            copy = commits[0].copy
            team = [command.slice for command in commits]
            self.log.note("commit", step=copy.step, digest=f"{copy.digest:016x}", team=team, books_s=self._books_s)
            self._books_s = 0.0
            self.log.committed(copy, self._metrics)
            self.spans.mark(now)
            self.report(copy.step)
            if self._ending is None and self.stopping(copy.step):
                self._ending = Ending(copy)
        elif was is not self.controller.phase and self.controller.phase is Phase.ROLL_CALL:
            self.log.note("roll call", step=self.controller.step)
        before = time.monotonic()
        self.spans.flush(now)
        self._books_s += time.monotonic() - before

    def _carry_out(self, command: m.Command) -> None:
        if isinstance(command, m.Wait):
            self._deadlines[command.wait] = time.monotonic() + command.deadline_s
        elif isinstance(command, m.Record):
            self.findings[str(command.finding)] += 1
            self.log.note("record", **dataclasses.asdict(command))
        elif isinstance(command, m.Finish):
            self._ending = Ending(command.copy)
        elif isinstance(command, m.Fail):
            self._ending = Ending(None, command.reason)
        else:
            if isinstance(command, m.Dismiss):
                self._dismissed[command.slice] = time.monotonic() + PATIENCE_S
            self.transport.send(command)
