"""Bars for stages that run side by side: live on a terminal, a line every tenth of the way elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import progress
from rich.console import Console


@dataclass
class Bars:
    """steps: number of steps of each stage."""

    steps: Mapping[str, int]
    live: progress.Progress | None = None
    tasks: dict[str, progress.TaskID] = field(default_factory=dict)
    tenths: dict[str, int] = field(default_factory=dict)

    def update(self, name: str, done: int) -> None:
        if self.live is not None:
            self.live.update(self.tasks[name], completed=done)
            return
        tenth = done * 10 // self.steps[name]
        if tenth > self.tenths.get(name, -1):
            self.tenths[name] = tenth
            sys.stderr.write(f"{name}: {done}/{self.steps[name]}\n")
            sys.stderr.flush()


@contextmanager
def bars(steps: Mapping[str, int]) -> Iterator[Bars]:
    """Shows the bars while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bars(steps)
        return
    columns = (
        progress.TextColumn("{task.description:>8}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as live:
        yield Bars(steps, live, {name: live.add_task(name, total=total) for name, total in steps.items()})
