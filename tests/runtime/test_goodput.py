"""The ledger: times by hand against the books of a simulated run."""

from __future__ import annotations

import random

import pytest

from geminid.plan.simulator import NS, Costs, Network, Simulation
from geminid.runtime import messages as m
from geminid.runtime.goodput import Activity, Bookkeeper, Ledger, Provisional
from geminid.runtime.messages import Deadlines, Policy


def test_an_account_loses_no_nanosecond():
    ledger, rng, now = Ledger(), random.Random(0), 0
    kinds = [*Activity, *Provisional]
    for _ in range(2_000):
        device = f"d{rng.randrange(5)}"
        ledger.enter(device, rng.choice(kinds), now)
        if rng.random() < 0.2:
            ledger.settle(device, dict.fromkeys(rng.sample(list(Provisional), 2), rng.choice(list(Activity))), now)
        now += rng.randrange(10**12)
    assert sum(ledger.totals(now).values()) == ledger.elapsed_ns(now)
    assert set(ledger.totals(now)) == set(Activity)


def test_time_does_not_run_backwards():
    ledger = Ledger()
    ledger.enter("d", Activity.IDLE, 10)
    with pytest.raises(AssertionError):
        ledger.enter("d", Activity.IDLE, 9)


def run(slices: int, standbys: int, steps: int, *, kill_at_s: float | None = None) -> tuple[Simulation, Ledger]:
    """Messages take no time, a step of two shards 2 + 1 s by one slice and 1 + 1 s by two, a fetch 4 s."""
    policy = Policy(num_shards=2, num_steps=steps, slices=slices, copies=1, deadlines=Deadlines(shard_s=100.0))
    costs = Costs(shard_s=1.0, update_s=1.0, fetch_s=4.0, first_s=5.0, digest_s=0.0, lost_s=0.5)
    simulation, ledger = Simulation(policy, costs, Network((0.0, 0.0)), random.Random(0)), Ledger()
    simulation.watchers.append(Bookkeeper(ledger, slices).on)
    for k in range(slices + standbys):
        simulation.start_slice(f"s{k}.0", f"d{k}")
    simulation.start_controller(0)
    if kill_at_s is not None:
        simulation.after(kill_at_s, simulation.kill_slice, "s1.0")
    simulation.run()
    assert isinstance(simulation.result, m.Finish)
    assert sum(ledger.totals(simulation.now).values()) == ledger.elapsed_ns(simulation.now)
    return simulation, ledger


def test_an_undisturbed_run_is_useful_but_for_its_start():
    simulation, ledger = run(slices=2, standbys=0, steps=3)
    assert simulation.now == (5 + 3 * 2) * NS
    assert ledger.table(simulation.now)["d0"] == {"useful step": 6.0, "start-up": 5.0}
    assert ledger.goodput(2, 0, simulation.now) == 6 / 11


def test_a_lost_slice_costs_its_detection_and_makes_steps_degraded():
    """Killed 0.5 s into the second step: its shard is computed by the other one, 0.5 s after that is done."""
    simulation, ledger = run(slices=2, standbys=0, steps=3, kill_at_s=7.5)
    rows = ledger.table(simulation.now)
    # d0: 1 s gradients (the loss is heard as they end), 1 s the lost shard, 1 s update; then a step of 3 s
    assert simulation.now == (5 + 2 + 3 + 3) * NS
    assert rows["d0"] == {"useful step": 2.0, "degraded step": 6.0, "start-up": 5.0}
    assert rows["d1"] == {"useful step": 2.0, "detection": 1.0, "start-up": 10.0}
    assert ledger.goodput(2, 0, simulation.now) == (2 * 2 + 6) / (2 * 13)


def test_a_standby_fetches_while_the_others_go_on():
    """The fetch of 4 s outlasts the gradients (1 s at hand, 1 s of the lost shard): the rest is waited for."""
    simulation, ledger = run(slices=2, standbys=1, steps=3, kill_at_s=7.5)
    rows = ledger.table(simulation.now)
    assert simulation.now == (5 + 2 + (1 + 4 + 1) + 2) * NS
    assert rows["d0"] == {"useful step": 4.0, "degraded step": 3.0, "state fetch": 3.0, "start-up": 5.0}
    assert rows["d2"] == {"idle": 8.0, "state fetch": 4.0, "degraded step": 1.0, "useful step": 2.0}
