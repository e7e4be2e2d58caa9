"""One simulated slice: what a real slice does with a command, on integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geminid.runtime import messages as m
from geminid.runtime.messages import Attempt, Copy

if TYPE_CHECKING:
    from geminid.plan.simulator import Simulation

MASK = (1 << 64) - 1


def mix(values: Iterable[int]) -> int:
    """An order-sensitive 64-bit hash (multiply and shift, after SplitMix64)."""
    mixed = 0x9E3779B97F4A7C15
    for value in values:
        mixed = ((mixed ^ value) * 0xBF58476D1CE4E5B9) & MASK
        mixed ^= mixed >> 29
    return mixed


def first_state() -> int:
    """The recipe's first state."""
    return mix([0])


def gradient(state: int, position: int) -> int:
    """Of the logical shard at this position of the data; it is its own digest."""
    return mix([state, position])


@functools.lru_cache(maxsize=8)  # all slices add the same
def updated(state: int, gradients: tuple[int, ...]) -> int:
    """The next state; `gradients` in shard order."""
    return mix([state, *gradients])


def digest(state: int) -> int:
    """Of a state."""
    return mix([state, 1])


def trajectory(num_shards: int, num_steps: int) -> list[int]:
    """The digests of an undisturbed run on one slice, step 0 first."""
    state = first_state()
    digests = [digest(state)]
    for step in range(num_steps):
        state = updated(state, tuple(gradient(state, step * num_shards + shard) for shard in range(num_shards)))
        digests.append(digest(state))
    return digests


@dataclass
class Held:
    """A state; `agreed` is the digest that it was committed or fetched with, `state` may have changed since."""

    step: int
    state: int
    agreed: int

    @property
    def copy(self) -> Copy:
        return Copy(self.step, self.agreed)


class SimulatedSlice:
    """Obeys commands. Faults are put in from outside: `alive`, `hung`, `slowness`, and the two `spoil` functions."""

    def __init__(self, simulation: Simulation, name: str, device: str, computes: bool) -> None:
        self.sim, self.name, self.device, self.computes = simulation, name, device, computes
        self.alive, self.hung, self.slowness = True, False, 1.0
        self.awake_since = 0  # ns
        self.spoil_gradient: Callable[[int, int, int], tuple[int, bool]] | None = None
        self.spoil_update: Callable[[int], int] | None = None
        self.held: Held | None = None
        self.new: Held | None = None  # not committed yet
        self.at_hand: dict[int, tuple[Attempt, int, bool]] = {}  # shard -> attempt, gradient, suspicious; for `held`
        self.seen = Attempt(-1, 0)
        self._order: m.Compute | None = None
        self._working = False
        self._updating: Attempt | None = None
        self._fetching: m.Fetch | None = None
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._does: dict[type, Callable[[Any], object]] = {
            m.Report: self._report,
            m.Compute: self._compute,
            m.Recompute: self._recompute,
            m.Update: self._update,
            m.Commit: lambda command: self._adopt(command.copy),
            m.Fetch: self._fetch,
            m.Save: self._save,
        }

    # --- the process ---

    def hello(self) -> m.Hello:
        return m.Hello(self.name, self.device, self.computes)

    def run(self, call: Callable[..., None], *args: Any) -> None:
        """Now, or when a hung process goes on, or never."""
        if self.hung:
            self._inbox.append((call, args))
        elif self.alive:
            call(*args)

    def wake(self) -> None:
        """SIGCONT."""
        self.hung, self.awake_since = False, self.sim.now
        inbox, self._inbox = self._inbox, []
        for call, args in inbox:
            self.run(call, *args)

    def obey(self, command: m.ToSlice) -> None:
        """No attempt that is older than the newest seen counts: an old controller, or a late message."""
        if isinstance(command, m.Dismiss):
            if command.attempt.controller >= self.seen.controller:
                self._order = self._fetching = None
                self.sim.announce(self.hello())
        elif command.attempt >= self.seen:
            self.seen = command.attempt
            self._does[type(command)](command)

    def _after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self.sim.after(delay_s * self.slowness, self.run, call, *args)

    def _answer(self, event: m.Event, attempt: Attempt) -> None:
        self.sim.answer(attempt.controller, event)

    def _adopt(self, copy: Copy) -> bool:
        """Whether this committed state is held, after taking it over from `new`."""
        if self.new is not None and self.new.copy == copy:
            self.held, self.new, self.at_hand = self.new, None, {}
        return self.held is not None and self.held.copy == copy

    # --- commands ---

    def _report(self, command: m.Report) -> None:
        if command.committed is not None:
            self._adopt(command.committed)
        self._after(self.sim.costs.digest_s, self._reported, command)

    def _reported(self, command: m.Report) -> None:
        if self.held is None:
            answer = m.Reported(self.name, command.attempt, None)
        else:
            held = self.held
            answer = m.Reported(self.name, command.attempt, held.step, digest(held.state), held.agreed)
        self._answer(answer, command.attempt)

    def _compute(self, command: m.Compute) -> None:
        if self._adopt(command.base):
            self._order = command
            self._work()

    def _work(self) -> None:
        """One piece of work at a time: what has begun is finished, whatever is asked meanwhile."""
        order = self._order
        if self._working or order is None:
            return
        lacking = [s for s in order.shards if s not in self.at_hand or self.at_hand[s][0] < order.since]
        if lacking:
            self._working = True
            self._after(self.sim.costs.shard_s * len(lacking), self._finish_work, order, lacking)
            return
        self._order = None
        mine = tuple((shard, self.at_hand[shard][1]) for shard in order.shards)
        suspicious = tuple(shard for shard in order.shards if self.at_hand[shard][2])
        self._answer(m.Computed(self.name, order.attempt, mine, suspicious), order.attempt)

    def _finish_work(self, order: m.Compute, shards: list[int]) -> None:
        self._working = False
        if self.held is not None and self.held.copy == order.base:
            for shard in shards:
                self.at_hand[shard] = (order.attempt, *self._gradient(order.cursor, shard))
        self._work()

    def _gradient(self, cursor: int, shard: int) -> tuple[int, bool]:
        """The gradient, and whether its metrics look suspicious."""
        assert self.held is not None
        value = gradient(self.held.state, cursor + shard)
        return (value, False) if self.spoil_gradient is None else self.spoil_gradient(value, self.held.step, shard)

    def _recompute(self, command: m.Recompute) -> None:
        self._after(self.sim.costs.shard_s, self._recomputed, command)

    def _recomputed(self, command: m.Recompute) -> None:
        if self.held is None or self.held.copy != command.base:
            return
        value, suspicious = self._gradient(command.cursor, command.shard)
        self.at_hand[command.shard] = (command.attempt, value, suspicious)
        self._answer(m.Recomputed(self.name, command.attempt, command.shard, value), command.attempt)

    def _update(self, command: m.Update) -> None:
        if self._adopt(command.base) and self._updating != command.attempt:  # what is asked twice is done once
            self._updating = command.attempt
            self._after(self.sim.costs.update_s, self._exchange, command)

    def _exchange(self, command: m.Update) -> None:
        if command.attempt != self.seen or self.held is None or self.held.copy != command.base:
            return
        peers = {owner: self.sim.slices.get(owner) for owner in dict.fromkeys(command.owners)}
        for owner, peer in peers.items():
            if peer is None or peer.hung or not self.sim.linked(self.name, owner):
                patience = 0.0 if peer is None else command.exchange_s
                self._after(patience, self._answer, m.Stuck(self.name, command.attempt, owner), command.attempt)
                return
        if self.sim.looked_up != (self.sim.now, command.attempt):  # else another slice saw the same at this instant
            for shard, (owner, promised) in enumerate(zip(command.owners, command.digests, strict=True)):
                peer = peers[owner]
                at_hand = peer.at_hand.get(shard) if peer is not None else None
                if at_hand is None or at_hand[1] != promised:
                    self._answer(m.Stuck(self.name, command.attempt, owner), command.attempt)
                    return
            self.sim.looked_up = (self.sim.now, command.attempt)
        state = updated(self.held.state, command.digests)
        if self.spoil_update is not None:
            state = self.spoil_update(state)
        self.new = Held(self.held.step + 1, state, digest(state))
        self._answer(m.Updated(self.name, command.attempt, self.new.agreed), command.attempt)

    def _fetch(self, command: m.Fetch) -> None:
        before, self._fetching = self._fetching, command
        if self._adopt(command.copy) and self.held is not None and digest(self.held.state) == command.copy.digest:
            self._arrive(command.copy, command.source, self.held.state)
        elif before is None or (before.copy, before.source) != (command.copy, command.source):
            costs = self.sim.costs
            delay_s = {m.DISK: costs.disk_s, m.FIRST: costs.first_s}.get(command.source, costs.fetch_s)
            self._after(delay_s, self._receive, command.copy, command.source)

    def _receive(self, copy: Copy, source: str) -> None:
        if source == m.FIRST:
            self._arrive(copy, source, first_state())
            return
        if source == m.DISK:
            state = self.sim.disk.get(copy)
        else:
            server = self.sim.slices.get(source)
            if server is not None and server.hung:
                return  # nothing comes, and nobody says so: what a deadline is for
            held = None if server is None or not self.sim.linked(self.name, source) else server.held
            state = held.state if held is not None and held.copy == copy else None
        self._arrive(copy, source, None if state is None else self.sim.transferred(state))

    def _arrive(self, copy: Copy, source: str, state: int | None) -> None:
        asked = self._fetching
        if asked is None or (asked.copy, asked.source) != (copy, source):
            return
        self._fetching = None
        got = None if state is None else digest(state)
        if state is not None and got is not None and copy.digest in (None, got):
            self.held, self.new, self.at_hand = Held(copy.step, state, got), None, {}
        self._answer(m.Fetched(self.name, asked.attempt, source, got), asked.attempt)

    def _save(self, command: m.Save) -> None:
        if self._adopt(command.copy) and self.held is not None:
            self._after(self.sim.costs.save_s, self._saved, command.copy, self.held.state)

    def _saved(self, copy: Copy, state: int) -> None:
        self.sim.disk[copy] = state
        self.sim.announce(m.Saved(copy))
