"""Thousands of runs under random faults; tests/simulation/invariants.py says what must hold in each."""

from __future__ import annotations

import importlib
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from tests.simulation.invariants import Broken
from tests.simulation.schedules import Schedule, run_schedule

SCHEDULES_A_TEST = 1_000
MUTANT_SCHEDULES = 3_000  # a broken controller must be found out within as many


@pytest.mark.parametrize("thousand", [0, 1, *(pytest.param(k, marks=pytest.mark.long) for k in range(2, 10))])
def test_random_schedules_keep_the_invariants(thousand):
    first = thousand * SCHEDULES_A_TEST
    endings = Counter(run_schedule(seed) for seed in range(first, first + SCHEDULES_A_TEST))
    assert endings.total() == SCHEDULES_A_TEST
    assert endings["done"] >= 0.93 * SCHEDULES_A_TEST  # the rest lost every copy, or every trustworthy device


def test_schedules_meet_everything_that_can_be_found():
    found: Counter[m.Finding] = Counter()
    events: Counter[type] = Counter()
    for seed in range(600):
        schedule = Schedule(seed)
        schedule.watchers = [
            lambda now, controller, event, commands: events.update([type(event), *map(type, commands)])
        ]
        schedule.run(max_events=50_000)
        found.update(record.finding for _, record in schedule.records)
    assert set(found) == set(m.Finding)
    never = {m.Repaired}
    everything = {kind for kind in (*m.Event.__args__, *m.Command.__args__) if kind not in never}
    assert everything <= set(events)


def test_a_schedule_can_be_run_again():
    def trace() -> list[str]:
        schedule = Schedule(77)
        schedule.run(max_events=50_000)
        return list(schedule.watcher.trace)

    assert trace() == trace()


def test_the_same_events_give_the_same_commands():
    heard: list[tuple[m.Event, list[m.Command]]] = []
    schedule = Schedule(2)
    schedule.watchers.append(lambda now, controller, event, commands: heard.append((event, commands)))
    schedule.run(max_events=50_000)
    assert schedule.newest == 0
    again = Controller(schedule.policy)
    assert [again.on(event) for event, _ in heard] == [commands for _, commands in heard]


# --- does the harness notice? ---

MODULES = ("members", "verdicts", "recovery", "controller")
COMMIT_RULE = "not self.updates.keys() | self.stuck.keys() >= set(self.team)"
MUTANTS: dict[str, tuple[tuple[str, str, str], ...]] = {  # what -> (module, right, wrong) of each changed line
    "digests are not compared": (("controller", "elif len(digests) == 1:", "elif digests:"),),
    "answers to older attempts count": (("controller", "self.attempt) == self.attempt:", "self.attempt):"),),
    "one slice need not have reported": (("controller", COMMIT_RULE, COMMIT_RULE.replace("self.team", "self.team[1:]")),),
    "the first report commits": (("controller", COMMIT_RULE, "not self.updates"),),
    "reports are counted, whoever they are from": (
        ("controller", "self.updates.setdefault(event.slice, event.digest)", "self.updates[len(self.updates)] = event.digest"),
        ("controller", COMMIT_RULE, "len(self.updates) < len(self.team)"),
    ),
    "gradients are counted, whoever they are from": (
        ("recovery", "pending.whom.discard(name)", "pending.whom.pop()"),
        ("controller", "if self.owners[shard] == event.slice and shard not in self.gradients:", "if True:"),
        ("controller", "if len(self.gradients) < self.policy.num_shards or", "if"),
        ("controller", "tuple(self.gradients[shard] for", "tuple(self.gradients.get(shard, 0) for"),
    ),
    "questions do not hold up the update": (("controller", "self.phase is Phase.GRADIENTS and not self.waits:", "self.phase is Phase.GRADIENTS:"),),
    "the majority commits at once": (
        ("controller", "            self._strike(name)\n        self._begin()", "            self.team.remove(name)\n        self._commit(truth)"),
    ),
    "the minority stays": (("controller", "self.members.appoint(name, Role.STANDBY)", "pass"), ("controller", "            self._strike(name)\n        self._begin()", "            self.team.remove(name)\n        self._commit(truth)")),
    "a stuck exchange is no obstacle": (("controller", "if self.stuck:", "if self.stuck and not self.updates:"),),
    "a step is counted twice": (("controller", "Copy(self.step + 1, digest)", "Copy(self.step + 2, digest)"),),
    "a step is not counted": (("controller", "Copy(self.step + 1, digest)", "Copy(max(self.step, 1), digest)"),),
    "updates may take for ever": (("controller", "self._expect(Waiting.UPDATES, self.team, deadlines.update_s)", "pass"),),
    "suspicious shards are let through": (("controller", "for shard in event.suspicious:", "for shard in ():"),),
    "who is outvoted stays": (("controller", "finding in (Finding.STICKY, Finding.WITNESS)", "finding in ()"),),
    "a copy is not checked": (("recovery", "guest.target.digest in (None, event.digest)", "True"),),
    "a held copy is not checked": (("recovery", "and r.digest == r.agreed", ""),),
    "the disk is asked before memory": (("recovery", "if newest is None or any(", "if self.checkpoints or newest is None or any("),),
    "nobody minds who is lost": (("recovery", "elif was_needed and", "elif False and"),),
    "any digest is a majority": (("verdicts", "if 2 * count > len(votes)", "if count > 0"),),
}  # fmt: skip


def mutant(*changes: tuple[str, str, str]) -> type[Controller]:
    """The controller with changes in the source of its modules."""
    names = [f"geminid.runtime.{name}" for name in MODULES]
    originals = {name: importlib.import_module(name) for name in names}
    try:
        for name, original in originals.items():
            path = Path(original.__file__ or "")
            text = path.read_text(encoding="utf-8")
            for module, right, wrong in changes:
                if name.endswith(f".{module}"):
                    assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {name}"
                    text = text.replace(right, wrong)
            copy = sys.modules[name] = types.ModuleType(name)
            exec(compile(text, path, "exec"), vars(copy))
        return sys.modules[names[-1]].Controller
    finally:
        sys.modules.update(originals)


@pytest.mark.parametrize("change", MUTANTS)
def test_a_broken_controller_is_found_out(change):
    broken = mutant(*MUTANTS[change])
    with pytest.raises(Broken, match=r"again: python -m tests\.simulation\.schedules"):
        for seed in range(MUTANT_SCHEDULES):
            run_schedule(seed, broken)


def test_an_unchanged_copy_of_the_controller_is_not():
    copy = mutant()
    assert copy is not Controller
    assert all(run_schedule(seed, copy) for seed in range(100))
