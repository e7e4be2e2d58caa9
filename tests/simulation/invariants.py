"""What must hold in every run, whatever fails; checked at every event, from the messages and the slices alone.

1. Every step commits exactly once: after step s comes s + 1. A step is committed again only after a rollback, and
   then with the same digest.
2. Every logical shard counts exactly once in a step: its owner reported it in this very attempt, and its gradient of
   that digest is what is added.
3. Nothing is committed that two slices disagree on: all who were asked to compute or to update have reported the new
   state, in this very attempt, with one digest.
4. No wait without a deadline: while the run goes on, the controller waits for somebody, with a timer set.
5. A run with an intact copy that can be reached never goes back more than one step.
6. Every committed state is that of an undisturbed run with a single slice.
7. Nobody is blamed who was not hit by a fault.
8. The run ends.
"""

from __future__ import annotations

from collections import defaultdict, deque

from geminid.plan.simulator import NS, Simulation
from geminid.plan.slices import digest
from geminid.runtime import messages as m
from geminid.runtime.controller import Controller

BLAMING = (m.Finding.DISAGREEMENT, m.Finding.TRANSIENT, m.Finding.STICKY, m.Finding.WITNESS)
PATIENCE_S = 10.0  # a slice that hung until just now could not be reached when the roll was called


class Broken(AssertionError):
    """An invariant does not hold."""


class Excused(Exception):
    """Every copy of the state was hit by a fault: nothing could have noticed."""


class Watcher:
    """Sees everything that goes into and comes out of the controllers of one simulation."""

    def __init__(self, simulation: Simulation, tainted: set[str], reference: list[int]) -> None:
        self.sim, self.tainted, self.reference = simulation, tainted, reference
        self.trace: deque[str] = deque(maxlen=80)
        self.highest = 0
        self.num_commits = 0
        self._last: dict[int, int] = {}  # by controller: the step it stands at
        self._asked: dict[m.Attempt, dict[str, tuple[int, ...]]] = defaultdict(dict)  # who computes which shards
        self._computed: dict[m.Attempt, dict[int, set[tuple[str, int]]]] = defaultdict(lambda: defaultdict(set))
        self._updates: dict[m.Attempt, dict[str, m.Update]] = defaultdict(dict)
        self._updated: dict[m.Attempt, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._timers: dict[int, set[int]] = defaultdict(set)

    def __call__(self, now: int, controller: Controller, event: m.Event, commands: list[m.Command]) -> None:
        incarnation = controller.attempt.controller
        self.trace.append(f"{now / 1e9:9.3f} [{incarnation}] {event}")
        self.trace.extend(f"{'':13}-> {command}" for command in commands)
        self._note_event(event)
        if isinstance(event, m.Expired):
            self._timers[incarnation].discard(event.wait)
        commits = [c for c in commands if isinstance(c, m.Commit)]
        if commits:
            self._check_commit(incarnation, commits)
        self._check_rollback(controller)
        for command in commands:
            self._note_command(incarnation, command)
        self._check_waits(controller, commands)

    def _note_event(self, event: m.Event) -> None:
        if isinstance(event, m.Computed):
            for shard, value in event.digests:
                self._computed[event.attempt][shard].add((event.slice, value))
        elif isinstance(event, m.Recomputed):
            self._computed[event.attempt][event.shard].add((event.slice, event.digest))
        elif isinstance(event, m.Updated):
            self._updated[event.attempt][event.slice].add(event.digest)

    def _note_command(self, incarnation: int, command: m.Command) -> None:
        if isinstance(command, m.Compute):
            self._asked[command.attempt][command.slice] = command.shards
            require(command.cursor == command.base.step * self.sim.policy.num_shards, "the data cursor is off")
        elif isinstance(command, m.Update):
            self._updates[command.attempt][command.slice] = command
        elif isinstance(command, m.Record) and command.finding in BLAMING and not command.detail.startswith("no "):
            require(self.tainted >= set(command.slices), f"an innocent is blamed: {command}")
        elif isinstance(command, m.Wait):
            require(command.deadline_s > 0 and bool(command.for_whom), f"a wait for nobody or without end: {command}")
            self._timers[incarnation].add(command.wait)

    def _check_commit(self, incarnation: int, commits: list[m.Commit]) -> None:
        copy, attempt = commits[0].copy, commits[0].attempt
        self.num_commits += 1
        require(all((c.copy, c.attempt) == (copy, attempt) for c in commits), "one commit, two states")
        require(copy.step == self._last[incarnation] + 1, f"step {copy.step} after {self._last[incarnation]}")
        self._last[incarnation] = copy.step
        asked, updates, updated = self._asked[attempt], self._updates[attempt], self._updated[attempt]
        require({c.slice for c in commits} == updates.keys() >= asked.keys(), "somebody was left out")
        for name in updates:
            require(name in updated, f"{name} has not reported step {copy.step}")
            require(updated[name] == {copy.digest}, f"{name} disagrees at step {copy.step}")
        owners: list[int] = sorted(shard for shards in asked.values() for shard in shards)
        require(owners == list(range(self.sim.policy.num_shards)), f"shards {owners} in step {copy.step}")
        for update in updates.values():
            for shard, (owner, value) in enumerate(zip(update.owners, update.digests, strict=True)):
                require(shard in asked[owner], f"shard {shard} is not {owner}'s")
                require((owner, value) in self._computed[attempt][shard], f"shard {shard} was not reported by {owner}")
        if copy.digest != self.reference[copy.step]:
            if updates.keys() <= self.tainted:
                raise Excused
            raise Broken(f"step {copy.step} is not that of an undisturbed run")
        if incarnation == self.sim.newest:
            self.highest = max(self.highest, copy.step)

    def _check_rollback(self, controller: Controller) -> None:
        incarnation = controller.attempt.controller
        if controller.committed is None:
            return
        step = controller.committed.step
        before = self._last.get(incarnation)
        self._last[incarnation] = step
        if incarnation != self.sim.newest or (before is not None and step >= before):
            return
        intact = [
            slice.name
            for slice in self.sim.slices.values()
            if not slice.hung
            and self.sim.now - slice.awake_since >= PATIENCE_S * NS
            and slice.held is not None
            and slice.held.step >= self.highest - 1
            and digest(slice.held.state) == self.reference[slice.held.step]
        ]
        require(step >= self.highest - 1 or not intact, f"back from {self.highest} to {step}, and {intact} is intact")

    def _check_waits(self, controller: Controller, commands: list[m.Command]) -> None:
        if any(isinstance(c, m.Finish | m.Fail) for c in commands) or controller.phase in ("done", "failed"):
            return
        require(bool(controller.waits), f"in phase {controller.phase} nobody is waited for")
        timers = self._timers[controller.attempt.controller]
        require(controller.waits.keys() <= timers, f"no timer for {controller.waits}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)
