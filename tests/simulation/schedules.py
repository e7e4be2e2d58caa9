"""One seed, one run: its size, its policy, its network, and what goes wrong in it.

`python -m tests.simulation.schedules SEED` runs one again and prints its trace.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable

from geminid.plan.simulator import Costs, Network, Simulation
from geminid.plan.slices import SimulatedSlice, trajectory
from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.goodput import Bookkeeper, Ledger
from geminid.runtime.messages import Deadlines, Policy
from tests.simulation.invariants import Broken, Excused, Watcher

DEADLINES = Deadlines(report_s=1.5, shard_s=4.0, update_s=5.0, exchange_s=2.5, fetch_s=4.0, rejoin_s=2000.0)
BOOT_S = 20.0
reference = functools.cache(trajectory)


class Schedule(Simulation):
    """A simulation whose seed decides everything."""

    def __init__(self, seed: int, make: Callable[[Policy, int], Controller] = Controller) -> None:
        rng = random.Random(seed)
        self.make = make
        num_slices, num_standbys = rng.choice([1, 2, 2, 3, 3, 4]), rng.choice([0, 1, 1, 2])
        policy = Policy(
            num_shards=rng.choice([1, 2, 3, 4, 5]),
            num_steps=rng.randint(3, 7),
            slices=num_slices,
            min_slices=rng.choice([1, 1, num_slices]),
            copies=rng.choice([1, 2, 2]),
            audit_every=rng.choice([None, 1, 2]),
            save_every=rng.choice([None, 2, 3]),
            deadlines=DEADLINES,
        )
        costs = Costs(shard_s=rng.choice([0.2, 1.0]), fetch_s=rng.choice([0.3, 1.5]), first_s=0.5, disk_s=2.0)
        jitter = rng.choice([0.0, 0.05, 0.3])
        lossy = rng.random() < 0.15
        network = Network((0.001, 0.001 + jitter), 0.03 if lossy else 0.0, rng.choice([0.0, 0.1]))
        super().__init__(policy, costs, network, rng)
        self.tainted: set[str] = set()  # slices that a fault has hit
        self.watcher = Watcher(self, self.tainted, reference(policy.num_shards, policy.num_steps))
        self.ledger = Ledger()
        self.bookkeeper = Bookkeeper(self.ledger, policy.slices)
        self.watchers += [self.watcher, self.keep_books]
        self.num_corrupted = self.num_integrity_faults = 0
        self.cut: set[frozenset[str]] = set()
        self.triggers: list[tuple[type, int, Callable[[str], None]]] = []  # at the n-th command of a type
        self._num_started = 0
        for k in range(num_slices + num_standbys):
            self.boot(f"device{k}")
        if rng.random() < 0.5:
            self.boot("keeper", computes=False)
        self.after(0.0, self.start_controller, 0, make)
        self.length_s = policy.num_steps * (costs.shard_s * policy.num_shards / num_slices + 1.5)
        for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4])):
            rng.choice(FAULTS)(self)

    def keep_books(self, now: int, controller: Controller, event: m.Event, commands: list[m.Command]) -> None:
        if controller.attempt.controller == self.newest:
            self.bookkeeper.on(now, controller, event, commands)

    def boot(self, device: str, computes: bool = True) -> None:
        self._num_started += 1
        self.start_slice(f"{device}.{self._num_started}", device, computes)

    def kill(self, name: str) -> None:
        """A killed process is started again, under a new name."""
        if name in self.slices:
            slice = self.slices[name]
            self.kill_slice(name)
            self.after(BOOT_S * self.rng.uniform(0.2, 2.0), self.boot, slice.device, slice.computes)

    def hang(self, name: str, for_s: float) -> None:
        if name in self.slices:
            self.slices[name].hung = True
            self.after(for_s, self.slices[name].wake)

    def some_slice(self) -> SimulatedSlice | None:
        return self.slices[self.rng.choice(sorted(self.slices))] if self.slices else None

    def at_random(self, call: Callable[..., None], *args: object) -> None:
        self.after(self.rng.uniform(0.0, self.length_s), call, *args)

    def _deliver(self, command: m.ToSlice) -> None:
        for trigger in list(self.triggers):
            kind, delay_ms, call = trigger
            if isinstance(command, kind):
                self.triggers.remove(trigger)
                self.after(delay_ms / 1e3, call, command.slice)
        super()._deliver(command)

    def transferred(self, state: int) -> int:
        if self.num_corrupted:
            self.num_corrupted -= 1
            self.num_integrity_faults += 1
            return state ^ (1 << self.rng.randrange(64))
        return state

    def linked(self, a: str, b: str) -> bool:
        return frozenset((a, b)) not in self.cut


# --- faults: each takes a schedule and arranges for something to go wrong ---


def kill_one(s: Schedule) -> None:
    s.at_random(lambda: (chosen := s.some_slice()) and s.kill(chosen.name))


def kill_two(s: Schedule) -> None:
    def now() -> None:
        for name in s.rng.sample(sorted(s.slices), min(2, len(s.slices))):
            s.kill(name)

    s.at_random(now)


def kill_all(s: Schedule) -> None:
    s.at_random(lambda: [s.kill(name) for name in sorted(s.slices)])


def kill_in_phase(s: Schedule) -> None:
    """In the middle of gradients, exchange, copy, roll call, a save or a second opinion."""
    kind = s.rng.choice([m.Compute, m.Update, m.Fetch, m.Report, m.Save, m.Commit, m.Recompute])
    s.at_random(s.triggers.append, (kind, s.rng.randint(0, 1500), s.kill))


def kill_source(s: Schedule) -> None:
    def serving(fetcher: str) -> None:
        fetch = s.slices[fetcher]._fetching if fetcher in s.slices else None
        if fetch is not None:
            s.kill(fetch.source)

    s.at_random(s.triggers.append, (m.Fetch, s.rng.randint(1, 300), serving))


def hang_one(s: Schedule) -> None:
    seconds = s.rng.choice([0.5, 3.0, 10.0, 60.0])
    s.at_random(lambda: (chosen := s.some_slice()) and s.hang(chosen.name, seconds))


def hang_in_phase(s: Schedule) -> None:
    kind = s.rng.choice([m.Compute, m.Update, m.Fetch, m.Report])
    seconds = s.rng.choice([3.0, 10.0, 60.0])
    s.at_random(s.triggers.append, (kind, s.rng.randint(0, 1500), lambda name: s.hang(name, seconds)))


def slow_one(s: Schedule) -> None:
    def now() -> None:
        if (chosen := s.some_slice()) is not None:
            chosen.slowness = s.rng.uniform(1.5, 8.0)
            s.after(s.rng.uniform(2.0, 40.0), setattr, chosen, "slowness", 1.0)

    s.at_random(now)


def corrupt_copies(s: Schedule) -> None:
    s.at_random(setattr, s, "num_corrupted", s.rng.randint(1, 3))


def cut_link(s: Schedule) -> None:
    def now() -> None:
        if len(s.slices) > 1:
            pair = frozenset(s.rng.sample(sorted(s.slices), 2))
            s.cut.add(pair)
            s.after(s.rng.uniform(1.0, 20.0), s.cut.discard, pair)

    s.at_random(now)


def flip_bit(s: Schedule) -> None:
    """In a held state, in memory."""

    def now() -> None:
        chosen = s.some_slice()
        if chosen is not None and chosen.held is not None:
            s.num_integrity_faults += 1
            chosen.held.state ^= 1 << s.rng.randrange(64)
            s.tainted.add(chosen.name)

    s.at_random(now)


def spoil_update(s: Schedule) -> None:
    sticky = s.rng.random() < 0.3
    victim, bits = s.rng.choice(sorted(s.slices)), s.rng.getrandbits(64) | 1  # two alike would outvote what is right

    def spoil(state: int) -> int:
        slice = s.slices[victim]
        if not sticky:
            slice.spoil_update = None
        s.num_integrity_faults += 1
        s.tainted.add(victim)
        return state ^ bits

    s.at_random(lambda: victim in s.slices and setattr(s.slices[victim], "spoil_update", spoil))


def spoil_gradient(s: Schedule) -> None:
    """A wrong gradient that shows: by a spike, or because this very shard is audited."""
    sticky, victim, bits = s.rng.random() < 0.3, s.rng.choice(sorted(s.slices)), s.rng.getrandbits(64) | 1
    every = s.policy.audit_every
    silent = every is not None and not sticky and s.rng.random() < 0.5

    def spoil(value: int, step: int, shard: int) -> tuple[int, bool]:
        if silent and not (step % every == 0 and shard == step // every % s.policy.num_shards):
            return value, False
        slice = s.slices[victim]
        if not sticky:
            slice.spoil_gradient = None
        s.num_integrity_faults += 1
        s.tainted.add(victim)
        return value ^ bits, not silent

    s.at_random(lambda: victim in s.slices and setattr(s.slices[victim], "spoil_gradient", spoil))


def genuine_spike(s: Schedule) -> None:
    """Suspicious everywhere and right."""
    at_step, at_shard = s.rng.randrange(s.policy.num_steps), s.rng.randrange(s.policy.num_shards)
    for slice in s.slices.values():
        slice.spoil_gradient = lambda value, step, shard: (value, (step, shard) == (at_step, at_shard))


def nondeterminism(s: Schedule) -> None:
    """Other bits each time, for some times."""
    at_step, at_shard = s.rng.randrange(s.policy.num_steps), s.rng.randrange(s.policy.num_shards)
    left = s.rng.randint(1, 12)

    def spoil(value: int, step: int, shard: int) -> tuple[int, bool]:
        nonlocal left
        if (step, shard) != (at_step, at_shard) or left == 0:
            return value, (step, shard) == (at_step, at_shard)
        left -= 1
        s.num_integrity_faults += 1
        s.tainted.update(s.slices)
        return value ^ s.rng.getrandbits(63), True

    for slice in s.slices.values():
        slice.spoil_gradient = spoil


def kill_controller(s: Schedule) -> None:
    def successor() -> None:
        s.start_controller(s.newest + 1 if s.controllers else dead[0] + 1, s.make)

    dead: list[int] = []

    def now() -> None:
        if s.controllers:
            dead.append(s.newest)
            s.controllers.clear()
            s.after(s.rng.uniform(0.1, 5.0), successor)

    s.at_random(now)


def second_controller(s: Schedule) -> None:
    """The old one was only thought to be dead: both give orders."""
    s.at_random(lambda: s.controllers and s.start_controller(s.newest + 1, s.make))


FAULTS = [
    *[kill_one, kill_in_phase, kill_in_phase, kill_in_phase, hang_one, hang_in_phase, flip_bit, spoil_update],
    *[kill_two, kill_all, kill_source, slow_one, corrupt_copies, cut_link, spoil_gradient, spoil_gradient],
    *[genuine_spike, nondeterminism, kill_controller, second_controller],
]


def run_schedule(seed: int, make: Callable[[Policy, int], Controller] = Controller) -> str:
    """How the run ended: `done`, `failed` (rightly) or `excused`.

    Raises Broken with the seed and the end of the trace.
    """
    schedule = Schedule(seed, make)
    try:
        schedule.run(max_events=50_000)
        return _ending(schedule)
    except Excused:
        return "excused"
    except Exception as error:
        trace = "\n".join(schedule.watcher.trace)
        again = f"again: python -m tests.simulation.schedules {seed}"
        raise Broken(f"seed {seed}: {type(error).__name__}: {error}\n{trace}\n{again}") from error


def _ending(schedule: Schedule) -> str:
    result, policy, ledger = schedule.result, schedule.policy, schedule.ledger
    assert sum(ledger.totals(schedule.now).values()) == ledger.elapsed_ns(schedule.now), "time is lost or counted twice"
    if isinstance(result, m.Finish):
        last = reference(policy.num_shards, policy.num_steps)[-1]
        assert (result.copy.step, result.copy.digest) == (policy.num_steps, last), "not the undisturbed run's end"
        return "done"
    assert isinstance(result, m.Fail)
    quarantined = any(record.finding is m.Finding.QUARANTINED for _, record in schedule.records)
    assert schedule.num_integrity_faults or quarantined, f"failed without need: {result.reason}"
    return "failed"


if __name__ == "__main__":
    schedule = Schedule(int(sys.argv[1]))
    schedule.watcher.trace = type(schedule.watcher.trace)()
    try:
        schedule.run(max_events=50_000)
    finally:
        print(*schedule.watcher.trace, sep="\n")
        print(schedule.result)
