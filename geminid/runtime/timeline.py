"""The ledger of a real run on disk: what each device did from when to when, over all controllers that the run had.

RUN/slices/ledger/N.json is of controller N; N.spans.jsonl has its spans but each device's latest, which may still grow.
Between two controllers of one session nobody watched: that time is `regroup`. A session is one `geminid train`; from
one to the next no time passes, whatever the machine's clock says: it may have been off.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geminid.runtime.goodput import USEFUL_WORK, Activity, Ledger, Provisional
from geminid.train.rundir import read_json, read_rows, write_json

FLUSH_NS = 2_000_000_000
SPANS = ".spans.jsonl"
Span = tuple[str, str, int, int]
STEP = "step"  # of a span: gradients, update, and waiting for others in it


class NotedLedger(Ledger):
    """A ledger that also notes spans: (device, what, begin, end) in nanoseconds; what is in a step is "step".

    closed: those that will not grow, until somebody takes them away. latest: by device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[Span] = []
        self.latest: dict[str, Span] = {}

    def enter(self, device: str, doing: Activity | Provisional, at_ns: int) -> None:
        account = self.accounts.get(device)
        if account is not None and at_ns > account.since_ns:
            what = STEP if isinstance(account.doing, Provisional) else str(account.doing)
            self._note(device, what, account.since_ns, at_ns)
        super().enter(device, doing, at_ns)

    def _note(self, device: str, what: str, begin: int, end: int) -> None:
        last = self.latest.get(device)
        if last is not None and last[1] == what and last[3] == begin:
            begin = last[2]
        elif last is not None:
            self.closed.append(last)
        self.latest[device] = (device, what, begin, end)


@dataclass
class Spans:
    """Writes a controller's ledger, now and then and at the end, complete or not at all."""

    path: Path
    session: str
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(SPANS).open("a") as file:
            file.writelines(json.dumps(span) + "\n" for span in self.ledger.closed)
        self.ledger.closed = []
        write_json(
            self.path,
            {
                "session": self.session,
                "wanted": self.wanted,
                "begun_ns": self.begun_ns,
                "end_ns": now_ns,
                "first_commit": self._marked,
                "devices": table,
                "spans": list(self.ledger.latest.values()),
            },
        )


def useful_ns(classes: Mapping[Any, int]) -> int:
    """What counts as goodput, in classes of time by activity or its name."""
    return sum(classes.get(activity, classes.get(str(activity), 0)) for activity in USEFUL_WORK)


def ledgers(directory: Path) -> list[dict[str, Any]]:
    """Of all controllers, oldest first. shift_ns: to add to all its times, so that sessions follow one another."""
    parts, end, shift, session = [], 0, 0, None
    for file in sorted(directory.glob("*.json"), key=lambda path: int(path.stem)):
        part = read_json(file)
        if part["session"] != session:
            session, shift = part["session"], end - part["begun_ns"]
        end = part["end_ns"] + shift
        parts.append(
            {
                **part,
                "controller": int(file.stem),
                "shift_ns": shift,
                "spans": read_rows(file.with_suffix(SPANS)) + part["spans"],
            }
        )
    return parts


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
    seen_until: dict[str, int] = {}
    for part in parts:
        for device, account in part["devices"].items():
            spent = by_device.setdefault(device, Counter())
            what = Activity.REGROUP if device in seen_until else Activity.START_UP
            spent[str(what)] += max(0, account["opened_ns"] + part["shift_ns"] - seen_until.get(device, 0))
            spent.update(account["classes_ns"])
            seen_until[device] = part["end_ns"] + part["shift_ns"]
    end = parts[-1]["end_ns"] + parts[-1]["shift_ns"]
    for device, until in seen_until.items():
        by_device[device][str(Activity.IDLE)] += end - until
    wanted, useful = parts[-1]["wanted"], sum(map(useful_ns, by_device.values()))
    marks = [(part["first_commit"], part["shift_ns"]) for part in parts if part["first_commit"]]
    marked_ns, useful_before = (marks[0][0]["at_ns"] + marks[0][1], marks[0][0]["useful_ns"]) if marks else (0, 0)
    every: Counter[str] = Counter()
    for spent in by_device.values():
        every.update(spent)
    seconds = {
        device: {str(a): spent[str(a)] / 1e9 for a in Activity if spent[str(a)]}
        for device, spent in [*sorted(by_device.items()), ("all", every)]
    }
    return {
        "elapsed_s": end / 1e9,
        "goodput": useful / (wanted * max(1, end)),
        "goodput_after_start": (useful - useful_before) / (wanted * max(1, end - marked_ns)),
        "controllers": len(parts),
        "classes_s": seconds,
    }
