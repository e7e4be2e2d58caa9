"""A cluster in simulated time: the real controller, slices that are small Python objects, and a bad network.

Times are whole nanoseconds. A state is a 64-bit integer; a gradient depends on the state and on the position in the
data, a new state on the old one and on all gradients in shard order. So a shard that is left out, counted twice,
computed at an old state or added out of order changes every later digest.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from geminid.plan.slices import SimulatedSlice
from geminid.runtime import messages as m
from geminid.runtime.controller import Controller
from geminid.runtime.messages import Command, Copy, Event, Policy

NS = 1_000_000_000  # nanoseconds a second


@dataclass(frozen=True)
class Costs:
    """How long a slice takes, in seconds."""

    shard_s: float = 1.0  # the gradients of one logical shard
    update_s: float = 0.5  # exchange and update
    fetch_s: float = 1.0  # the state, from another slice
    disk_s: float = 5.0  # the state, from disk
    first_s: float = 1.0  # the recipe's first state
    save_s: float = 3.0  # to disk, beside the run
    digest_s: float = 0.05
    lost_s: float = 0.2  # from the end of a process to `Lost`


@dataclass(frozen=True)
class Network:
    """What happens to messages between controller and slices; probabilities of each message."""

    delay_s: tuple[float, float] = (0.001, 0.001)  # uniform between the two: messages overtake each other
    loss: float = 0.0
    repetition: float = 0.0


class Simulation:
    """A heap of things to happen. `watchers` see every event with the commands that it caused."""

    def __init__(self, policy: Policy, costs: Costs, network: Network, rng: random.Random) -> None:
        self.policy, self.costs, self.network, self.rng = policy, costs, network, rng
        self.now = 0  # ns
        self.slices: dict[str, SimulatedSlice] = {}  # processes that have not ended
        self.controllers: dict[int, Controller] = {}  # by incarnation; more than one: an old one that hung came back
        self.disk: dict[Copy, int] = {}
        self.records: list[tuple[int, m.Record]] = []
        self.result: m.Finish | m.Fail | None = None
        self.watchers: list[Callable[[int, Controller, Event, list[Command]], None]] = []
        self.looked_up: tuple[int, m.Attempt] | None = None  # when all promised gradients were last found at hand
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_posted = 0

    # --- time ---

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call later."""
        self._num_posted += 1
        heapq.heappush(self._heap, (self.now + round(delay_s * NS), self._num_posted, call, args))

    def run(self, max_events: int = 1_000_000) -> None:
        """Until the newest controller has finished or failed.

        Raises AssertionError where nothing is left to happen or `max_events` did not suffice.
        """
        for _ in range(max_events):
            if self.result is not None:
                return
            assert self._heap, "the run stands still: nothing is left that could happen"
            time, _, call, args = heapq.heappop(self._heap)
            self.now = max(self.now, time)  # deadlines that mean nothing any more may have been jumped over
            call(*args)
        raise AssertionError(f"no end after {max_events} events")

    # --- processes ---

    @property
    def newest(self) -> int:
        """The incarnation that slices obey."""
        return max(self.controllers, default=-1)

    def start_controller(self, incarnation: int, make: Callable[[Policy, int], Controller] = Controller) -> None:
        """A controller finds the slices that exist and the checkpoints on disk."""
        self.controllers[incarnation] = make(self.policy, incarnation)
        hellos = tuple(slice.hello() for slice in self.slices.values())
        self.tell(incarnation, m.Start(hellos, tuple(sorted(self.disk))))

    def start_slice(self, name: str, device: str, computes: bool = True) -> SimulatedSlice:
        """A process that is warm now; controllers hear of it."""
        slice = self.slices[name] = SimulatedSlice(self, name, device, computes)
        self.announce(slice.hello())
        return slice

    def kill_slice(self, name: str) -> None:
        """SIGKILL; controllers hear of it a little later."""
        slice = self.slices.pop(name, None)
        if slice is not None:
            slice.alive = False
            self.after(self.costs.lost_s, self.announce, m.Lost(name))

    # --- messages ---

    def announce(self, event: Event) -> None:
        """From the driver's own register to every controller that lives."""
        for incarnation in list(self.controllers):
            self.tell(incarnation, event)

    def answer(self, incarnation: int, event: Event) -> None:
        """From a slice to the controller that asked."""
        self._post(self.tell, incarnation, event)

    def tell(self, incarnation: int, event: Event) -> None:
        """Here the controller works."""
        controller = self.controllers.get(incarnation)
        if controller is None:
            return
        commands = controller.on(event)
        for watch in self.watchers:
            watch(self.now, controller, event, commands)
        if commands:
            self.carry_out(incarnation, commands)

    def carry_out(self, incarnation: int, commands: Sequence[Command]) -> None:
        """What a driver does."""
        for command in commands:
            if isinstance(command, m.Wait):
                self.after(command.deadline_s, self.tell, incarnation, m.Expired(command.wait))
            elif isinstance(command, m.Record):
                self.records.append((self.now, command))
            elif isinstance(command, m.Finish | m.Fail):
                if incarnation == self.newest:
                    self.result = command
            elif isinstance(command, m.Dismiss):
                self.after(self.network.delay_s[1], self._deliver, command)
            else:
                self._post(self._deliver, command)

    def _deliver(self, command: m.ToSlice) -> None:
        slice = self.slices.get(command.slice)
        if slice is not None:
            slice.run(slice.obey, command)

    def _post(self, deliver: Callable[..., None], *args: Any) -> None:
        network, chance = self.network, self.rng.random
        if network.loss and chance() < network.loss:
            return
        low, high = network.delay_s
        self.after(low + (high - low) * chance() if high > low else low, deliver, *args)
        if network.repetition and chance() < network.repetition:
            self.after(low + (high - low) * chance() * 20, deliver, *args)  # so late that it means an older attempt

    def linked(self, a: str, b: str) -> bool:
        """Whether two slices reach each other now."""
        return True

    def transferred(self, state: int) -> int:
        """A state after its way over the network or from the disk."""
        return state
