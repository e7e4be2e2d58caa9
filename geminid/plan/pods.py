"""SuperPods that break, are rewired and come back: the controller of real runs under months of simulated faults.

Between faults nothing happens but steps of a known length. Those are not simulated singly: at the begin of an
undisturbed step the run jumps over all whole steps that end before the next thing happens to a machine, before the
next disk checkpoint, and before the last step that is being replayed. The devices' accounts are credited with exactly
the nanoseconds that these steps take singly; tests compare both ways, which must give the same ledger.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from geminid.plan.rates import CUBES_A_POD, Inputs
from geminid.plan.simulator import NS, Costs, Network, Simulation
from geminid.plan.slices import Held, digest, mix
from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.goodput import Activity, Bookkeeper, Ledger, Provisional
from geminid.runtime.messages import Command, Copy, Deadlines, Policy, Waiting
from geminid.runtime.recovery import Phase

DAY_S = 86_400.0
DELAY_S = 0.001  # of a message
ENDLESS = 10**12  # steps


class Strategy(StrEnum):
    """What a run does about faults."""

    DISK = "disk"  # all start again from the last checkpoint
    REPLICAS = "replicas"  # all wait, then the pod that was lost gets the state from another
    ELASTIC = "elastic"  # the others go on; hot standby cubes have the programs


class SkippingController(Controller):
    """For simulations only: it can be told that undisturbed steps were committed."""

    def skip(self, copy: Copy) -> list[Command]:
        """Stand at the begin of the step after `copy`, in a new attempt."""
        assert self.phase is Phase.GRADIENTS and not self.gradients
        self._out, self.committed = [], copy
        self._begin()
        return self._out


class Pods(Simulation):
    """One run. `rewired`: lost cubes are replaced by spares; else (static wiring) a pod waits for the repair."""

    def __init__(
        self,
        inputs: Inputs,
        strategy: Strategy,
        seed: int,
        interval_s: float | None = None,
        rewired: bool = True,
        singly: bool = False,
    ) -> None:
        self.inputs, self.strategy, self.rewired, self.singly = inputs, strategy, rewired, singly
        self.faults = random.Random(seed)
        policy = _policy(inputs, strategy, interval_s)
        costs = Costs(
            shard_s=inputs.shard_s,
            update_s=inputs.update_s,
            fetch_s=inputs.fetch_s,
            disk_s=inputs.restore_s,
            first_s=0.0,
            save_s=0.0,
            digest_s=0.0,
            lost_s=0.0,
        )
        super().__init__(policy, costs, Network((DELAY_S, DELAY_S)), random.Random(seed))
        self.ledger = Ledger()
        self.books = Bookkeeper(self.ledger, inputs.pods)
        self.watchers.append(self.books.on)
        self._save_s = inputs.save_s if strategy is Strategy.DISK else 0.0
        self.broken: list[list[int]] = [[] for _ in range(inputs.pods)]  # when each broken cube will be repaired
        self.process: list[str | None] = [None] * inputs.pods
        self.num_interruptions = 0
        self.quarters: list[float] = []  # goodput of each quarter of the days
        self._waiting: set[int] = set()  # pods without cubes enough
        self._boots = [0] * inputs.pods  # how often each pod was told to start
        self._ahead: list[int] = []  # times of what happens to machines, a heap
        self._begin()

    def goodput(self) -> float:
        """Simulate all days; the share of pod seconds in useful new steps."""
        self.run(max_events=10**9)
        if isinstance(self.result, m.Fail):
            raise ValueError(f"the simulated run failed after {self.now / NS / DAY_S:.1f} days: {self.result.reason}")
        return self.ledger.goodput(self.inputs.pods, 0, self.now)

    def _begin(self) -> None:
        for pod in range(self.inputs.pods):
            self._boot(pod, 0)
            self._at(self._gap_s(self.inputs.cube_faults_a_day), self._break_cube, pod)
            if self.rewired:
                self._at(self._gap_s(self._switch_faults_a_day), self._break_switch, pod)
        self._at(self._gap_s(self.inputs.rates.sdc), self._corrupt)
        if self.inputs.pods == 1 and self.strategy is not Strategy.DISK:
            memory = self.start_slice("memory", "memory", computes=False)  # of the pod's own hosts:
            memory.slowness = min(
                1.0, self.inputs.shard_s / max(self.inputs.fetch_s, DELAY_S)
            )  # done before the gradients are
        self.start_controller(0, SkippingController)
        for quarter in range(1, 5):
            self._at(self.inputs.days * DAY_S * quarter / 4, self._end_quarter)

    def _end_quarter(self) -> None:
        so_far = self.ledger.goodput(self.inputs.pods, 0, self.now) * (len(self.quarters) + 1)
        self.quarters.append(so_far - sum(self.quarters))
        if len(self.quarters) == 4:
            self.result = m.Finish(Copy(0, None))

    # --- machines ---

    def _at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Something that no step may be skipped over."""
        if math.isfinite(delay_s):
            heapq.heappush(self._ahead, self.now + round(delay_s * NS))
            self.after(delay_s, call, *args)

    def _gap_s(self, a_day: float) -> float:
        return self.faults.expovariate(a_day / DAY_S) if a_day else math.inf

    @property
    def _switch_faults_a_day(self) -> float:
        return self.inputs.rates.switch * self.inputs.rates.switches_a_pod

    def _break_cube(self, pod: int) -> None:
        self._at(self._gap_s(self.inputs.cube_faults_a_day), self._break_cube, pod)
        was_spare = self.faults.random() < self.inputs.spare_cubes / CUBES_A_POD
        self.after(self.inputs.repair_h * 3600, self._repair_cube, pod)
        self.broken[pod].append(self.now + round(self.inputs.repair_h * 3600 * NS))
        if not was_spare:
            self._interrupt(pod)

    def _repair_cube(self, pod: int) -> None:
        self.broken[pod].pop(0)
        if pod in self._waiting:
            self._replace(pod)

    def _break_switch(self, pod: int) -> None:
        self._at(self._gap_s(self._switch_faults_a_day), self._break_switch, pod)
        self._interrupt(pod)

    def _corrupt(self) -> None:
        """One wrong bit in one pod's new state; who reads only checkpoints starts again from one."""
        self._at(self._gap_s(self.inputs.rates.sdc), self._corrupt)
        pod = self.faults.randrange(self.inputs.pods)
        name = self.process[pod]
        if self.strategy is Strategy.DISK or self.inputs.pods == 1:
            self._interrupt(pod)
        elif name is not None:
            slice = self.slices[name]

            def spoil(state: int) -> int:
                slice.spoil_update = None
                return state ^ 1

            slice.spoil_update = spoil

    def _interrupt(self, pod: int) -> None:
        name, self.process[pod] = self.process[pod], None
        self._boots[pod] += 1  # a start that is on its way begins again
        if name is None:
            self._replace(pod)
            return
        self.num_interruptions += 1
        self.slices.pop(name).alive = False
        self._at(self.inputs.detection_s, self._detect, pod, name)

    def _detect(self, pod: int, name: str) -> None:
        self.announce(m.Lost(name))
        self._replace(pod)
        if self.strategy is Strategy.DISK:
            for other, running in enumerate(self.process):
                if running is not None:
                    self.process[other] = None
                    self.slices.pop(running).alive = False
                    self.announce(m.Lost(running))
                    self._replace(other)

    def _replace(self, pod: int) -> None:
        """Rewire around what is broken and start the programs, or wait for the repair."""
        device = f"pod{pod}"
        spares = self.inputs.spare_cubes if self.rewired else 0
        if len(self.broken[pod]) > spares:
            self._waiting.add(pod)
            heapq.heappush(self._ahead, self.broken[pod][0])
            self.ledger.enter(device, Activity.IDLE, self.now)
            return
        self._waiting.discard(pod)
        warm = self.strategy is Strategy.ELASTIC and spares > 0
        restart_s = self.inputs.warm_restart_s if warm else self.inputs.restart_s
        self._boots[pod] += 1
        self.ledger.enter(device, Activity.REGROUP, self.now)
        rewired_ns = self.now + round(self.inputs.reconfigure_s * NS)
        self.after(self.inputs.reconfigure_s, self._start_up, pod, self._boots[pod], rewired_ns)
        self._at(self.inputs.reconfigure_s + restart_s, self._boot, pod, self._boots[pod])

    def _start_up(self, pod: int, boot: int, at_ns: int) -> None:
        if boot == self._boots[pod]:  # by then the others may have jumped ahead
            self.ledger.enter(f"pod{pod}", Activity.START_UP, at_ns)

    def _boot(self, pod: int, boot: int) -> None:
        if boot == self._boots[pod]:
            self.process[pod] = f"pod{pod}.{boot}"
            self.start_slice(f"pod{pod}.{boot}", f"pod{pod}")

    # --- steps ---

    def carry_out(self, incarnation: int, commands: Sequence[Command]) -> None:
        """As a driver does, with a stop for each disk checkpoint, and jumps where nothing happens."""
        saves = [command for command in commands if isinstance(command, m.Save)]
        if saves:
            self._stop_for(saves[0], commands)
        elif not self.singly and self._is_quiet(commands) and (count := self._num_to_skip()) > 0:
            self._skip(count)
        else:
            super().carry_out(incarnation, commands)

    def _stop_for(self, save: m.Save, commands: Sequence[Command]) -> None:
        server = self.slices.get(save.slice)
        for device in self._at_work():
            self.ledger.enter(device, Activity.SAVE, self.now)
        others = [command for command in commands if not isinstance(command, m.Save)]
        attempt = self.controllers[0].attempt
        self._at(self._save_s, self._go_on, save, server, others, attempt)

    def _go_on(self, save: m.Save, server: Any, commands: Sequence[Command], attempt: m.Attempt) -> None:
        if server is not None and server.alive:
            server._adopt(save.copy)
            self._saved(save.copy, server.held.state)
        if self.controllers[0].attempt == attempt:
            for device in self._at_work():
                self.ledger.enter(device, Provisional.GRADIENTS, self.now)
            self.carry_out(0, commands)

    def _at_work(self) -> list[str]:
        return [self.books.devices[name] for name in self.controllers[0].members.active]

    def _is_quiet(self, commands: Sequence[Command]) -> bool:
        """A step begins that nothing disturbs: everybody is alive, nobody joins."""
        if not any(isinstance(command, m.Commit) for command in commands):
            return False  # an attempt at the same step again: some gradients may be at hand
        controller = self.controllers[0]
        waits = [pending.what for pending in controller.waits.values()]
        joining = any(guest for guest in controller.guests if guest != "memory")
        alive = all(name in self.slices and not self.slices[name].spoil_update for name in controller.members.active)
        return alive and not joining and Waiting.GRADIENTS in waits

    def _step_ns(self) -> int:
        """Of the step that begins, to the nanosecond: two orders, two answers, the largest load, the update."""
        owners = self.controllers[0].owners
        load = max(owners.count(name) for name in set(owners))
        return 4 * round(DELAY_S * NS) + round(self.inputs.shard_s * load * NS) + round(self.inputs.update_s * NS)

    def _num_saves(self, count: int) -> int:
        """Disk checkpoints in the next `count` steps."""
        step, every = self.controllers[0].step, self.policy.save_every
        return 0 if every is None else (step + count) // every - step // every

    def _num_to_skip(self) -> int:
        """Whole steps, with the checkpoints among them, that end before the next thing happens."""
        while self._ahead[0] < self.now:  # what happens at this moment may not be over
            heapq.heappop(self._ahead)
        step, every, step_ns = self.controllers[0].step, self.policy.save_every, self._step_ns()
        save_ns = round(self._save_s * NS)
        left_ns = self._ahead[0] - self.now - 1
        count = left_ns // step_ns
        if every is not None:  # an upper bound, then down to what fits
            count = min(count, left_ns * every // (step_ns * every + save_ns) + every)
            while count > 0 and count * step_ns + self._num_saves(count) * save_ns > left_ns:
                count -= 1
            count -= count > 0 and (step + count) % every == 0  # a checkpoint is not left half done
        if step < self.books.highest:
            count = min(count, self.books.highest - step - 1)
        return count

    def _skip(self, count: int) -> None:
        controller = self.controllers[0]
        assert isinstance(controller, SkippingController)
        before, num_saves = controller.committed, self._num_saves(count)
        assert before is not None and before.digest is not None
        state = mix([before.digest, count])
        copy = Copy(before.step + count, digest(state))
        if num_saves:
            assert self.policy.save_every is not None
            last = copy.step // self.policy.save_every * self.policy.save_every
            self._saved(Copy(last, digest(state)), state)
        step_ns, save_ns = count * self._step_ns(), num_saves * round(self._save_s * NS)
        activity = self.books.activity(before.step + 1)
        for name in controller.members.active:
            slice = self.slices[name]
            slice.held, slice.new, slice.at_hand = Held(copy.step, state, digest(state)), None, {}
            self.ledger.skip(self.books.devices[name], activity, step_ns)
            self.ledger.skip(self.books.devices[name], Activity.SAVE, save_ns)
        self.now += step_ns + save_ns
        self.books.highest = max(self.books.highest, copy.step)
        commands = controller.skip(copy)
        self.books.on(self.now, controller, m.Saved(copy), commands)  # an event that means nothing to the ledger
        super().carry_out(0, commands)

    def _saved(self, copy: Copy, state: int) -> None:
        self.disk = {copy: state}
        self.announce(m.Saved(copy))


def _policy(inputs: Inputs, strategy: Strategy, interval_s: float | None) -> Policy:
    patient = 100 * (inputs.step_s * inputs.pods + inputs.detection_s + inputs.fetch_s + inputs.restore_s + 1)
    if strategy is not Strategy.DISK:
        interval_s = inputs.backup_s
    elif interval_s is None:
        interval_s = inputs.young_interval_s
    return Policy(
        num_shards=inputs.shards_a_pod * inputs.pods,
        num_steps=ENDLESS,
        slices=inputs.pods,
        min_slices=1 if strategy is Strategy.ELASTIC else inputs.pods,
        copies=1 if strategy is Strategy.DISK else 2,
        save_every=max(1, round(interval_s / inputs.step_s)) if math.isfinite(interval_s) else None,
        max_strikes=10**9,  # it is a cube that is taken out, not the pod
        deadlines=Deadlines(patient, patient, 2 * patient, patient, patient, 366 * DAY_S),
    )
