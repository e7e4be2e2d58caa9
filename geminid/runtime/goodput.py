"""The goodput ledger: every nanosecond of every device has exactly one class.

Goodput is the time spent computing useful new steps over the elapsed time (Gemini report, section 5). A device that is
missing computes nothing, so a step by three of four devices counts three quarters. Times are whole nanoseconds: the
classes add up to the elapsed time exactly. What a step was good for is known when it commits; until then its time is
provisional.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.messages import Attempt, Command, Event, Waiting
from geminid.runtime.recovery import Phase


class Activity(StrEnum):
    """What a device's time went into."""

    USEFUL = "useful step"  # new, by all slices that are wanted
    DEGRADED = "degraded step"  # new, by fewer
    DETECTION = "detection"  # of a fault: waiting for whom it hit
    REGROUP = "regroup"  # roll calls, rewiring, waiting until there are slices enough
    STATE_FETCH = "state fetch"
    COMPILE = "compile"
    REPLAY = "replay"  # a step, or part of one, that was computed before or came to nothing
    ROLLBACK = "rollback"  # reading a disk checkpoint
    SAVE = "save"  # of a disk checkpoint, as far as the run stops for it
    AUDIT = "audit"  # second opinions
    IDLE = "idle"  # standing by, waiting for repair, or done
    START_UP = "start-up"


class Provisional(StrEnum):
    """Time within a step that has not committed."""

    GRADIENTS = "gradients"
    UPDATE = "update"
    WAIT = "wait"  # for others, having answered


USEFUL_WORK = (Activity.USEFUL, Activity.DEGRADED)


@dataclass
class Account:
    """Of one device."""

    opened_ns: int
    doing: Activity | Provisional
    since_ns: int
    spent_ns: Counter[Activity | Provisional] = field(default_factory=Counter)


class Ledger:
    """Accounts by device. Time only goes forward: `at_ns` is never less than the last for that device."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def enter(self, device: str, doing: Activity | Provisional, at_ns: int) -> None:
        """From now on the device does this; the first call opens its account."""
        account = self.accounts.setdefault(device, Account(at_ns, doing, at_ns))
        assert at_ns >= account.since_ns, f"{device} at {at_ns}, after {account.since_ns}"
        spent = account.spent_ns
        spent[account.doing] = spent.get(account.doing, 0) + at_ns - account.since_ns
        account.doing, account.since_ns = doing, at_ns

    def doing(self, device: str) -> Activity | Provisional:
        return self.accounts[device].doing

    def settle(self, device: str, classes: Mapping[Provisional, Activity], at_ns: int) -> None:
        """What was provisional so far, belongs to these classes."""
        self.enter(device, self.doing(device), at_ns)
        spent = self.accounts[device].spent_ns
        for provisional, activity in classes.items():
            spent[activity] += spent.pop(provisional, 0)

    def skip(self, device: str, activity: Activity, ns: int) -> None:
        """`ns` of an activity, before what the device does now goes on: for steps that are not simulated singly."""
        self.accounts[device].spent_ns[activity] += ns
        self.accounts[device].since_ns += ns

    def totals(self, at_ns: int, devices: Iterable[str] | None = None) -> dict[Activity, int]:
        """Nanoseconds of each class over devices, until `at_ns`; a step that has not committed counts as replay."""
        totals: Counter[Activity] = Counter()
        for device in self.accounts if devices is None else devices:
            account = self.accounts[device]
            for activity, ns in [*account.spent_ns.items(), (account.doing, at_ns - account.since_ns)]:
                totals[activity if isinstance(activity, Activity) else Activity.REPLAY] += ns
        return {activity: totals[activity] for activity in Activity}

    def elapsed_ns(self, at_ns: int) -> int:
        """Summed over devices: what the classes add up to."""
        return sum(at_ns - account.opened_ns for account in self.accounts.values())

    def goodput(self, wanted: int, since_ns: int, at_ns: int) -> float:
        """Of a run that wants so many slices at work from `since_ns` to `at_ns`."""
        totals = self.totals(at_ns)
        return sum(totals[activity] for activity in USEFUL_WORK) / (wanted * (at_ns - since_ns))

    def table(self, at_ns: int) -> dict[str, dict[str, float]]:
        """Seconds of each class by device, and in all; classes without time are left out."""
        rows = {device: self.totals(at_ns, [device]) for device in self.accounts} | {"all": self.totals(at_ns)}
        return {name: {str(a): ns / 1e9 for a, ns in row.items() if ns} for name, row in rows.items()}


class Bookkeeper:
    """Reads events and commands, with the time at which the controller handled them, and keeps the ledger.

    The driver itself enters what the controller cannot know: START_UP when a process begins, COMPILE, SAVE, and
    REGROUP or IDLE while hardware is rewired or repaired.
    """

    def __init__(self, ledger: Ledger, wanted: int) -> None:
        self.ledger, self.wanted = ledger, wanted
        self.devices: dict[str, str] = {}  # by slice
        self.highest = 0  # the last step that ever committed: up to here nothing is new
        self._active: dict[str, None] = {}  # slices that compute in this attempt
        self._attempt = Attempt(-1, 0)

    def on(self, at_ns: int, controller: Controller, event: Event, commands: list[Command]) -> None:
        """After `controller.on(event)` gave `commands`."""
        self._note_event(at_ns, event)
        if not commands and controller.phase is not Phase.GRADIENTS:
            return
        commits = [command for command in commands if isinstance(command, m.Commit)]
        for commit in commits:
            classes = dict.fromkeys(Provisional, self.activity(commit.copy.step))
            self.ledger.settle(self.devices[commit.slice], classes, at_ns)
        if commits:
            self.highest = max(self.highest, commits[0].copy.step)
        if controller.attempt != self._attempt:
            if not commits:
                self._note_void(at_ns)
            self._attempt, self._active = controller.attempt, {}
            for device in self.devices.values():
                if self.ledger.doing(device) is Activity.REGROUP:
                    self.ledger.enter(device, Activity.IDLE, at_ns)  # unless a command says more
        for command in commands:
            self._note_command(at_ns, command)
        self._note_hold(at_ns, controller)
        if controller.phase in (Phase.SHORT, Phase.DONE):
            doing = Activity.REGROUP if controller.phase is Phase.SHORT else Activity.IDLE
            for name in controller.members.active:
                self.ledger.enter(self.devices[name], doing, at_ns)

    def activity(self, step: int) -> Activity:
        """What a committed step with the active slices of now counts as; `step` includes it."""
        if step <= self.highest:
            return Activity.REPLAY
        return Activity.USEFUL if len(self._active) >= self.wanted else Activity.DEGRADED

    def _note_event(self, at_ns: int, event: Event) -> None:
        if isinstance(event, m.Hello):
            self._greet(at_ns, event)
        elif isinstance(event, m.Start):
            for hello in event.slices:
                self._greet(at_ns, hello)
        elif isinstance(event, m.Lost) and event.slice in self.devices:
            device = self.devices.pop(event.slice)
            self._write_off(device, at_ns)
            self._active.pop(event.slice, None)
            self.ledger.enter(device, Activity.START_UP, at_ns)
        elif (
            not isinstance(event, m.Computed | m.Updated | m.Recomputed | m.Fetched)
            or event.attempt != self._attempt
            or event.slice not in self.devices
        ):
            return
        elif not isinstance(event, m.Fetched):
            resting = Provisional.WAIT if event.slice in self._active else Activity.IDLE
            self.ledger.enter(self.devices[event.slice], resting, at_ns)
        elif event.slice not in self._active:
            self.ledger.enter(self.devices[event.slice], Activity.IDLE, at_ns)

    def _greet(self, at_ns: int, hello: m.Hello) -> None:
        if hello.slice not in self.devices or self.ledger.doing(hello.device) is Activity.DETECTION:
            self.devices[hello.slice] = hello.device
            self.ledger.enter(hello.device, Activity.IDLE, at_ns)

    def _note_void(self, at_ns: int) -> None:
        """Gradients are at hand for the next attempt; the rest was for nothing."""
        classes = {Provisional.UPDATE: Activity.REPLAY, Provisional.WAIT: Activity.DETECTION}
        for name in self._active:
            self.ledger.settle(self.devices[name], classes, at_ns)

    def _write_off(self, device: str, at_ns: int) -> None:
        """Nobody knows when it stopped: what it was doing last is the detection of its loss."""
        self.ledger.settle(device, {}, at_ns)
        account = self.ledger.accounts[device]
        if isinstance(account.doing, Provisional):
            last = account.spent_ns.pop(account.doing, 0)
            account.spent_ns[Activity.DETECTION] += last
        self.ledger.settle(device, dict.fromkeys(Provisional, Activity.REPLAY), at_ns)

    def _note_command(self, at_ns: int, command: Command) -> None:
        if isinstance(command, m.Wait | m.Record | m.Finish | m.Fail | m.Save) or command.slice not in self.devices:
            return
        device = self.devices[command.slice]
        if isinstance(command, m.Dismiss):
            self._write_off(device, at_ns)
            self._active.pop(command.slice, None)
            self.ledger.enter(device, Activity.DETECTION, at_ns)
        elif isinstance(command, m.Report):
            self.ledger.settle(device, dict.fromkeys(Provisional, Activity.REPLAY), at_ns)
            self.ledger.enter(device, Activity.REGROUP, at_ns)
        elif isinstance(command, m.Compute):
            if command.since == command.attempt:  # what was at hand is not believed
                self.ledger.settle(device, {Provisional.GRADIENTS: Activity.REPLAY}, at_ns)
            self._active[command.slice] = None
            self.ledger.enter(device, Provisional.GRADIENTS, at_ns)
        elif isinstance(command, m.Update):
            self.ledger.enter(device, Provisional.UPDATE, at_ns)
        elif isinstance(command, m.Recompute):
            self.ledger.enter(device, Activity.AUDIT, at_ns)
        elif isinstance(command, m.Fetch):
            doing = {m.DISK: Activity.ROLLBACK, m.FIRST: Activity.START_UP}.get(command.source, Activity.STATE_FETCH)
            self.ledger.enter(device, doing, at_ns)

    def _note_hold(self, at_ns: int, controller: Controller) -> None:
        """All gradients are there, and the update waits for a guest or an opinion."""
        if controller.phase is not Phase.GRADIENTS:
            return
        awaited = {pending.what for pending in controller.waits.values()}
        if Waiting.GRADIENTS in awaited:
            return
        holding = Activity.STATE_FETCH if Waiting.FETCHES in awaited else Activity.AUDIT
        for name in self._active:
            if self.ledger.doing(self.devices[name]) is Provisional.WAIT:
                self.ledger.enter(self.devices[name], holding, at_ns)
