"""What is left when copies go bad, one after the other; controllers that take over; audits."""

from __future__ import annotations

import random

import pytest

from geminid.plan.simulator import Costs, Network, Simulation
from geminid.plan.slices import Held, digest, trajectory
from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.messages import Copy, Finding, Policy

STEPS, SHARDS = 6, 4
REFERENCE = trajectory(SHARDS, STEPS)


def simulation(**policy: int) -> Simulation:
    return Simulation(
        Policy(**{"num_shards": SHARDS, "num_steps": STEPS, "slices": 2} | policy),
        Costs(),
        Network(),
        random.Random(0),
    )


def holding(sim: Simulation, name: str, step: int, good: bool = True, computes: bool = True) -> None:
    """A slice that an earlier controller left at a step; a bad copy has one flipped bit."""
    state = STATES[step]
    sim.start_slice(name, name, computes).held = Held(step, state ^ (0 if good else 1 << 40), digest(state))


def states() -> list[int]:
    sim = simulation(slices=1)
    found: dict[int, int] = {}
    slice = sim.start_slice("s", "d")
    sim.watchers.append(lambda *_: slice.held and found.update({slice.held.step: slice.held.state}))
    sim.start_controller(0)
    sim.run()
    return [found[step] for step in range(STEPS)]


STATES = states()


def finish(sim: Simulation, incarnation: int = 1) -> list[m.Record]:
    sim.start_controller(incarnation)
    sim.run()
    assert sim.result == m.Finish(Copy(STEPS, REFERENCE[STEPS]))
    return [record for _, record in sim.records]


def test_the_reference_states_are_the_references():
    assert [digest(state) for state in STATES] == REFERENCE[:STEPS]


def test_a_new_controller_goes_on_where_the_slices_are():
    sim = simulation()
    holding(sim, "a", 3)
    holding(sim, "b", 4)  # the commit of step 4 reached b alone
    sim.start_controller(1)
    assert sim.controllers[1].step == 0
    records = finish(sim, 2)
    assert not any(record.finding is Finding.ROLLBACK for record in records)
    assert min(record.step for record in records if record.finding is Finding.PROMOTED) == 5


def test_a_corrupted_copy_is_refused_and_the_next_one_taken():
    sim = simulation(slices=3)
    holding(sim, "a", 4, good=False)
    holding(sim, "b", 4)
    sim.start_slice("c", "c")
    records = finish(sim)
    assert [r.slices for r in records if r.finding is Finding.BAD_COPY] == [("a",)]


def test_a_copy_that_is_flipped_on_its_way_is_fetched_elsewhere():
    sim = simulation(slices=3)
    for name in "ab":
        holding(sim, name, 4)
    sim.start_slice("c", "c")
    flips = iter([1 << 7])
    sim.transferred = lambda state: state ^ next(flips, 0)  # type: ignore[method-assign]
    records = finish(sim)
    (bad,) = [r.slices for r in records if r.finding is Finding.BAD_COPY]
    assert bad[1] == "c"
    assert [r.slices for r in records if r.finding is Finding.PROMOTED] == [("c",)]


def test_with_all_copies_bad_the_disk_checkpoint_is_read():
    sim = simulation()
    for name in "ab":
        holding(sim, name, 4, good=False)
    sim.disk = {Copy(k, digest(STATES[k])): STATES[k] for k in (1, 2)}
    reads: list[m.Event] = []
    sim.watchers.append(
        lambda now, controller, event, commands: reads.extend(c for c in commands if isinstance(c, m.Fetch))
    )
    finish(sim)
    assert {(read.source, read.copy.step) for read in reads} == {(m.DISK, 2)}


def test_a_bad_checkpoint_is_passed_over_for_an_older_one():
    sim = simulation()
    for name in "ab":
        sim.start_slice(name, name)
    sim.disk = {Copy(1, digest(STATES[1])): STATES[1], Copy(2, digest(STATES[2])): STATES[2] ^ 1}
    records = finish(sim)
    assert any(r.finding is Finding.BAD_COPY and r.slices == (m.DISK,) for r in records)


def test_a_bad_checkpoint_is_passed_over_for_a_copy_in_memory_that_is_newer_than_the_next():
    sim = simulation()
    holding(sim, "a", 3)
    sim.start_slice("b", "b")
    sim.disk = {Copy(1, digest(STATES[1])): STATES[1], Copy(4, digest(STATES[4])): STATES[4] ^ 1}
    steps: list[int] = []
    sim.watchers.append(lambda now, controller, event, commands: steps.append(controller.step))
    records = finish(sim)
    assert any(r.finding is Finding.BAD_COPY and r.slices == (m.DISK,) for r in records)
    assert min(step for step in steps if step) == 3


def test_with_everything_bad_there_is_one_clear_error_and_nothing_is_overwritten():
    sim = simulation()
    for name in "ab":
        holding(sim, name, 4, good=False)
    disk = sim.disk = {Copy(2, digest(STATES[2])): STATES[2] ^ 1}
    before = dict(disk)
    sim.start_controller(1)
    sim.run()
    assert isinstance(sim.result, m.Fail)
    assert sim.result.reason == "no intact copy is left, in memory or on disk; nothing was overwritten"
    assert sim.disk == before
    assert {name: slice.held.state for name, slice in sim.slices.items() if slice.held} == dict.fromkeys(
        "ab", STATES[4] ^ 1 << 40
    )


def test_a_copy_in_memory_beside_a_single_slice_loses_at_most_one_step():
    sim = simulation(slices=1)
    sim.start_slice("a", "a")
    sim.start_slice("k", "k", computes=False)
    sim.after(19.0, sim.kill_slice, "a")
    sim.after(25.0, sim.start_slice, "b", "b")
    lost: list[int] = []
    sim.watchers.append(lambda now, controller, event, commands: lost.append(controller.step))
    records = finish(sim, 0)
    drops = [before - after for before, after in zip(lost, lost[1:], strict=False) if after < before]
    assert drops in ([], [1])
    assert [r.slices for r in records if r.finding is Finding.LOST] == [("a",)]


@pytest.mark.parametrize(("fault_at", "finding"), [("owner", Finding.TRANSIENT), ("auditor", Finding.WITNESS)])
def test_an_audit_finds_who_is_wrong(fault_at, finding):
    sim = simulation(audit_every=2)
    for name in "abc":
        sim.start_slice(name, name)

    def spoil(value: int, step: int, shard: int) -> tuple[int, bool]:
        if step != 2:
            return value, False
        slice.spoil_gradient = None
        return value ^ 4, False  # silent: only an audit can see it

    slice = sim.slices["b" if fault_at == "owner" else "c"]  # the audit of step 2 is of shard 1, which is b's
    slice.spoil_gradient = spoil
    records = finish(sim, 0)
    assert [(r.finding, r.slices) for r in records if r.finding is finding] == [(finding, (slice.name,))]


def test_a_finished_controller_is_silent():
    sim = simulation()
    for name in "ab":
        sim.start_slice(name, name)
    finish(sim, 0)
    controller: Controller = sim.controllers[0]
    assert controller.on(m.Hello("z", "z")) == controller.on(m.Expired(1)) == []
