"""Beneath the step: who is there, who holds which copy, and how a state is found again.

`Recovery` is the lower half of `Controller`. It leaves ACTIVE exactly the slices that hold the committed state, and
then calls `_begin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from geminid.runtime import messages as m
from geminid.runtime.members import Members, Role
from geminid.runtime.messages import Attempt, Command, Copy, Finding, Policy, Waiting
from geminid.runtime.verdicts import majority


class Phase(StrEnum):
    """Where the controller stands."""

    NEW = "new"
    ROLL_CALL = "roll call"  # who holds what?
    SHORT = "short of slices"
    RESTORE = "restore"  # nobody who computes holds a state
    GRADIENTS = "gradients"  # and, beside it, copies for guests and second opinions
    UPDATE = "update"
    DONE = "done"
    FAILED = "failed"


class Purpose(StrEnum):
    """Why a slice that is not active fetches the state."""

    JOIN = "join"
    AUDIT = "audit"
    KEEP = "keep"


@dataclass
class Guest:
    """A slice that fetches a state; whoever waits for it waits until it has come or no source is left."""

    purpose: Purpose
    sources: list[str]  # the first is being asked
    target: Copy
    digest: int | None = None  # of what has arrived


@dataclass
class Pending:
    """A wait, and who has not answered yet."""

    what: Waiting
    about: int | None  # a shard
    whom: set[str]


class Recovery:
    """Membership, roll calls, copies, waits."""

    def __init__(self, policy: Policy, incarnation: int) -> None:
        self.policy = policy
        self.phase = Phase.NEW
        self.attempt = Attempt(incarnation, 0)
        self.committed: Copy | None = None
        self.checkpoints: list[Copy] = []  # on disk, oldest first
        self.members = Members(policy.max_strikes)
        self.guests: dict[str, Guest] = {}
        self.waits: dict[int, Pending] = {}
        self.replays = 0  # attempts at this step that ended without anybody to blame
        self._reports: dict[str, m.Reported] = {}
        self._calls = 0  # how often this roll call was called out
        self._sources: list[str] = []  # of this restore
        self._refused = False  # somebody tried all of them in vain
        self._tries = 0  # to restore a copy that was in memory
        self._benched: set[str] = set()  # failed as guests of this step: it does not wait for them again
        self._disk_was_bad = False
        self._num_waits = 0
        self._out: list[Command] = []

    def _begin(self, fresh: bool = False) -> None:
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Committed steps."""
        return self.committed.step if self.committed else 0

    # --- attempts and waits ---

    def _renew(self) -> None:
        """From here on every answer to what was asked before is too late."""
        self.attempt = Attempt(self.attempt.controller, self.attempt.number + 1)
        self.guests, self.waits = {}, {}

    def _expect(self, what: Waiting, whom: Iterable[str], deadline_s: float, about: int | None = None) -> None:
        self._num_waits += 1
        whom = tuple(whom)
        self.waits[self._num_waits] = Pending(what, about, set(whom))
        self._out.append(m.Wait(self._num_waits, what, whom, deadline_s))

    def _answered(self, what: Waiting, name: str, about: int | None = None) -> None:
        for wait, pending in list(self.waits.items()):
            if (pending.what, pending.about) == (what, about):
                pending.whom.discard(name)
                if not pending.whom:
                    del self.waits[wait]

    def _on_expired(self, event: m.Expired) -> None:
        if event.wait not in self.waits:  # what it waited for has come, or is not wanted any more
            return
        pending = self.waits.pop(event.wait)
        what, missing = pending.what, sorted(pending.whom)
        if what is Waiting.SLICES:
            have = len(self.members.active) + len(self.members.standbys)
            deadline = self.policy.deadlines.rejoin_s
            self._fail(f"{have} slices where {self.policy.min_slices} are needed, and none came in {deadline:g} s")
        elif what is Waiting.COPIES:
            self._roll_call()
        elif what is Waiting.REPORTS and not self._found() and self._calls < self.policy.roll_calls:
            self._call(missing)
        else:
            self._give_up(missing, f"no {what} by the deadline")

    # --- membership ---

    def _on_start(self, event: m.Start) -> None:
        self.checkpoints = list(event.checkpoints)
        for hello in event.slices:
            self.members.welcome(hello)
        self._roll_call()

    def _on_hello(self, event: m.Hello) -> None:
        if self.members.welcome(event):
            self._begin_if_short()

    def _on_repaired(self, event: m.Repaired) -> None:
        if self.members.repaired(event.device):
            self._begin_if_short()

    def _begin_if_short(self) -> None:
        enough = len(self.members.active) + len(self.members.standbys) >= self.policy.min_slices
        if self.phase is Phase.SHORT and enough:
            self._begin()

    def _on_lost(self, event: m.Lost) -> None:
        if event.slice in self.members.by_name:
            was_needed = self._is_needed(event.slice)
            self._record(Finding.LOST, [event.slice], "its process ended")
            del self.members.by_name[event.slice]
            self._without([event.slice], was_needed)

    def _give_up(self, missing: list[str], why: str) -> None:
        """These may come back: whatever they still say belongs to an older attempt."""
        was_needed = any(map(self._is_needed, missing))
        self._benched |= self.guests.keys() & set(missing)
        self._record(Finding.LOST, missing, why)
        for name in missing:
            self.members.appoint(name, Role.MISSING)
            self._out.append(m.Dismiss(name, self.attempt))
        self._without(missing, was_needed)

    def _is_needed(self, name: str) -> bool:
        return self.members.by_name[name].role is Role.ACTIVE or name in self.guests

    def _without(self, gone: list[str], was_needed: bool) -> None:
        if self.phase is Phase.ROLL_CALL:
            for name in gone:
                self._answered(Waiting.REPORTS, name)
                self._reports.pop(name, None)
            self._gather()
        elif self.phase is Phase.RESTORE:
            for name in gone:
                self._answered(Waiting.FETCHES, name)
                self.guests.pop(name, None)
            self._restored()
        elif was_needed and self.phase is not Phase.NEW:
            self._begin()

    def _wait_for_slices(self) -> None:
        """No work can be done until somebody says Hello."""
        self._renew()
        self.phase = Phase.SHORT
        self._expect(Waiting.SLICES, ("a slice that computes",), self.policy.deadlines.rejoin_s)

    def _strike(self, name: str) -> bool:
        out = self.members.strike(name)
        if out:
            self._record(Finding.QUARANTINED, [name])
        return out

    def _quarantine(self, name: str) -> None:
        self.members.quarantine(name)
        self._record(Finding.QUARANTINED, [name])

    # --- roll call: who holds what? At the start, after a takeover, when nobody is left or nobody agrees ---

    def _roll_call(self) -> None:
        self._renew()
        self.phase = Phase.ROLL_CALL
        self._reports = {}
        self._calls = 0
        everybody = list(self.members.by_name)
        if everybody:
            self._call(everybody)
        else:
            self._wait_for_slices()

    def _call(self, whom: list[str]) -> None:
        self._calls += 1
        for name in whom:
            self._out.append(m.Report(name, self.attempt, self.committed))
        self._expect(Waiting.REPORTS, whom, self.policy.deadlines.report_s)

    def _on_reported(self, event: m.Reported) -> None:
        if self.phase is Phase.ROLL_CALL and event.slice in self.members.by_name:
            self._reports[event.slice] = event
            self._answered(Waiting.REPORTS, event.slice)
            self._gather()

    def _intact(self) -> dict[str, Copy]:
        """Copies that still have the digest that was agreed on."""
        reports = self._reports.values()
        return {r.slice: Copy(r.step, r.digest) for r in reports if r.step is not None and r.digest == r.agreed}

    def _found(self) -> bool:
        """Nothing newer can turn up. A new controller knows that only from everybody."""
        return self.committed in self._intact().values()

    def _newest(self) -> Copy | None:
        intact = self._intact()
        if self._found():
            return self.committed
        for step in sorted({copy.step for copy in intact.values()} - {0}, reverse=True):  # the first state is made anew
            digest = majority({name: copy.digest for name, copy in intact.items() if copy.step == step})
            if digest is not None:
                return Copy(step, digest)
        return None

    def _gather(self) -> None:
        if self.waits:
            return
        intact, newest = self._intact(), self._newest()
        for name, report in self._reports.items():
            self.members.appoint(name, Role.STANDBY)
            if report.step is not None and name not in intact:
                self._record(Finding.BAD_COPY, [name])
                self._strike(name)
        if newest is None or any(copy.step > newest.step for copy in self.checkpoints):
            self._restore_from_disk()
            return
        holders = [name for name, copy in intact.items() if copy == newest]
        active = [name for name in holders if name in self.members.standbys][: self.policy.slices]
        if not active:
            self._restore(newest, holders)
            return
        self._go_back_to(newest)
        for name in active:
            self.members.appoint(name, Role.ACTIVE)
        self._begin()

    def _go_back_to(self, copy: Copy) -> None:
        if self.committed is not None and copy.step < self.committed.step:
            self._record(Finding.ROLLBACK, [], f"to step {copy.step}")
        self.committed = copy
        self._tries = 0

    # --- copies ---

    def _fetch(self, name: str, guest: Guest) -> None:
        self.guests[name] = guest
        self._out.append(m.Fetch(name, self.attempt, guest.sources[0], guest.target))
        self._expect(Waiting.FETCHES, [name], self.policy.deadlines.fetch_s)

    def _arrived(self, event: m.Fetched) -> bool:
        """True once this guest is settled: it has a copy of the right digest, or there is no source left."""
        guest = self.guests.get(event.slice)
        if guest is None or guest.digest is not None or event.source != guest.sources[0]:
            return False
        self._answered(Waiting.FETCHES, event.slice)
        if event.digest is not None and guest.target.digest in (None, event.digest):
            guest.digest = event.digest
            return True
        if event.digest is not None:
            self._record(Finding.BAD_COPY, [event.source, event.slice])
        guest.sources.pop(0)
        if guest.sources:
            self._fetch(event.slice, guest)
            return False
        del self.guests[event.slice]
        self._benched.add(event.slice)
        self._refused = True
        return True

    def _restore_from_disk(self) -> None:
        if self.checkpoints:
            self._restore(self.checkpoints[-1], [m.DISK])
        elif self._disk_was_bad:
            self._fail("no intact copy is left, in memory or on disk; nothing was overwritten")
        else:
            self._restore(Copy(0, None), [m.FIRST])

    def _restore(self, copy: Copy, sources: list[str]) -> None:
        """Nobody who computes holds a state: as many as are wanted fetch one."""
        standbys = self.members.standbys
        if len(standbys) < self.policy.min_slices:
            self._wait_for_slices()
            return
        self._renew()
        self.phase = Phase.RESTORE
        self._sources, self._refused = sources, False
        for name in standbys[: self.policy.slices]:
            self._fetch(name, Guest(Purpose.JOIN, sources * 2, copy))  # a bad transfer is no bad copy

    def _restored(self) -> None:
        if self.waits:
            return
        if not self.guests:
            self._next_source()
            return
        digest = majority({name: guest.digest for name, guest in self.guests.items()})
        if digest is None:
            self._replay(self._roll_call)
            return
        target = next(iter(self.guests.values())).target
        self._go_back_to(Copy(target.step, digest))
        for name, guest in self.guests.items():
            if guest.digest == digest:
                self.members.appoint(name, Role.ACTIVE)
            else:
                self._strike(name)
        self._begin()

    def _next_source(self) -> None:
        """Nobody could restore this copy. If those who tried are gone, that says nothing about it."""
        in_memory = self._sources not in ([m.DISK], [m.FIRST])
        if not self._refused:
            self._roll_call()
        elif in_memory and self._tries < self.policy.copy_tries:
            self._tries += 1
            self._renew()
            self._expect(Waiting.COPIES, self._sources, self.policy.deadlines.report_s)  # then they are asked again
        elif in_memory:
            self._restore_from_disk()
        else:
            bad = self.checkpoints.pop()
            self._disk_was_bad = True
            self._record(Finding.BAD_COPY, [m.DISK], f"the checkpoint of step {bad.step}")
            self._roll_call()  # an older one may be older than what is in memory

    def _replay(self, again: Callable[[], None]) -> None:
        self.replays += 1
        if self.replays <= self.policy.max_replays:
            again()
            return
        self._fail(
            f"step {self.step} gave different bits {self.replays} times and nobody can be blamed among "
            f"{m.names(self.members.active)}; a third slice would tell who is wrong"
        )

    def _record(self, finding: Finding, slices: Iterable[str], detail: str = "") -> None:
        self._out.append(m.Record(finding, tuple(slices), self.step, detail))

    def _fail(self, reason: str) -> None:
        self._renew()
        self.phase = Phase.FAILED
        self._out.append(m.Fail(reason))
