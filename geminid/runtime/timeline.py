"""The ledger of a real run on disk: what each device did from when to when, over all controllers that the run had.

RUN/slices/ledger/N.json is of controller N. Between two controllers nobody watched: that time is `regroup`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geminid.runtime.goodput import USEFUL_WORK, Activity, Ledger, Provisional
from geminid.train.rundir import read_json, write_json

FLUSH_NS = 2_000_000_000
STEP = "step"  # of a span: gradients, update, and waiting for others in it


class NotedLedger(Ledger):
    """A ledger that also keeps the spans: (device, what, begin, end) in nanoseconds; what is in a step is "step"."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[tuple[str, str, int, int]] = []
        self._last: dict[str, int] = {}  # by device: where its latest span stands

    def enter(self, device: str, doing: Activity | Provisional, at_ns: int) -> None:
        account = self.accounts.get(device)
        if account is not None and at_ns > account.since_ns:
            what = STEP if isinstance(account.doing, Provisional) else str(account.doing)
            self._note(device, what, account.since_ns, at_ns)
        super().enter(device, doing, at_ns)

    def _note(self, device: str, what: str, begin: int, end: int) -> None:
        at = self._last.get(device)
        if at is not None and self.spans[at][1] == what and self.spans[at][3] == begin:
            self.spans[at] = (device, what, self.spans[at][2], end)
            return
        self._last[device] = len(self.spans)
        self.spans.append((device, what, begin, end))


@dataclass
class Spans:
    """Writes a controller's ledger, now and then and at the end, complete or not at all."""

    path: Path
    wanted: int  # slices that the run wants at work
    ledger: NotedLedger = field(default_factory=NotedLedger)
    begun_ns: int = field(default_factory=time.monotonic_ns)
    _flushed_ns: int = 0
    _marked: dict[str, Any] | None = None  # how things stood at the first commit

    def mark(self, now_ns: int) -> None:
        """Once: from here on the run is under way."""
        if self._marked is None:
            self._marked = {"at_ns": now_ns, "useful_ns": useful_ns(self.ledger.totals(now_ns))}

    def flush(self, now_ns: int) -> None:
        if now_ns - self._flushed_ns >= FLUSH_NS:
            self.close(now_ns)

    def close(self, now_ns: int) -> None:
        self._flushed_ns = now_ns
        table = {
            device: {
                "opened_ns": account.opened_ns,
                "classes_ns": {str(a): ns for a, ns in self.ledger.totals(now_ns, [device]).items() if ns},
            }
            for device, account in self.ledger.accounts.items()
        }
        write_json(
            self.path,
            {
                "wanted": self.wanted,
                "begun_ns": self.begun_ns,
                "end_ns": now_ns,
                "first_commit": self._marked,
                "devices": table,
                "spans": self.ledger.spans,
            },
        )


def useful_ns(classes: Mapping[Any, int]) -> int:
    """What counts as goodput, in classes of time by activity or its name."""
    return sum(classes.get(activity, classes.get(str(activity), 0)) for activity in USEFUL_WORK)


def ledgers(directory: Path) -> list[dict[str, Any]]:
    """Of all controllers, oldest first."""
    files = sorted(directory.glob("*.json"), key=lambda path: int(path.stem))
    return [read_json(file) for file in files]


def totals(directory: Path) -> dict[str, Any]:
    """Seconds of each class by device and over all; elapsed seconds; goodput. ValueError when there is no ledger.

    Goodput: useful and degraded seconds over elapsed seconds times the slices that the run wants. Each device's classes
    add up to its elapsed time. goodput_after_start counts from the first commit: without the processes' start-up.
    """
    parts = ledgers(directory)
    if not parts:
        raise ValueError(
            f"no ledger in {directory}: the run was not trained on slices (geminid train RECIPE --slices N)"
        )
    by_device: dict[str, Counter[str]] = {}
    begun = parts[0]["begun_ns"]
    seen_until: dict[str, int] = {}
    for part in parts:
        for device, account in part["devices"].items():
            spent = by_device.setdefault(device, Counter())
            before = seen_until.get(device, begun)
            what = Activity.REGROUP if device in seen_until else Activity.START_UP
            spent[str(what)] += max(0, account["opened_ns"] - before)
            spent.update(account["classes_ns"])
            seen_until[device] = part["end_ns"]
    end = parts[-1]["end_ns"]
    for device, until in seen_until.items():
        by_device[device][str(Activity.IDLE)] += end - until
    wanted, useful = parts[-1]["wanted"], sum(map(useful_ns, by_device.values()))
    mark = next((part["first_commit"] for part in parts if part["first_commit"]), {"at_ns": begun, "useful_ns": 0})
    every: Counter[str] = Counter()
    for spent in by_device.values():
        every.update(spent)
    seconds = {
        device: {str(a): spent[str(a)] / 1e9 for a in Activity if spent[str(a)]}
        for device, spent in [*sorted(by_device.items()), ("all", every)]
    }
    return {
        "elapsed_s": (end - begun) / 1e9,
        "goodput": useful / (wanted * max(1, end - begun)),
        "goodput_after_start": (useful - mark["useful_ns"]) / (wanted * max(1, end - mark["at_ns"])),
        "controllers": len(parts),
        "classes_s": seconds,
    }
