"""One slice: holds a state, computes, updates, digests, serves and fetches copies. It decides nothing.

Commands are obeyed one after another; peers are served meanwhile, from values that never change in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from geminid.runtime import messages as m
from geminid.runtime.checkpoints import Checkpoints
from geminid.runtime.digest import state_digest
from geminid.runtime.exchange import Blocks, Board, Exchange, Header, PeerFailed, Peers
from geminid.runtime.faults import Dropped, Point, Trap, flipped
from geminid.runtime.messages import Attempt, Copy
from geminid.runtime.replicas import Place
from geminid.runtime.requests import ALWAYS, Checking
from geminid.runtime.work import Leaves, Work
from geminid.train.shards import Part

SPIKE = 20.0  # a shard's gradient norm is suspicious beyond so many times the largest of the last committed step


@dataclass(frozen=True)
class Held:
    """A state; `agreed` is the digest that it was committed or fetched with, `leaves` may have changed since."""

    step: int
    names: tuple[str, ...]
    leaves: Leaves
    agreed: int
    norm: float = math.inf  # largest of the shards' gradients that led to it

    @property
    def copy(self) -> Copy:
        return Copy(self.step, self.agreed)


@dataclass(frozen=True)
class AtHand:
    """A shard's gradients, and the attempt at which they were computed."""

    attempt: Attempt
    part: Part
    header: Header
    norm: float


@dataclass(frozen=True)
class Answer:
    """What the controller hears, and what only the driver's log needs."""

    event: m.Event
    metrics: dict[str, np.float32] | None = None


class Slice:
    """work: None in a process that only keeps copies."""

    def __init__(
        self,
        name: str,
        device: str,
        work: Work | None,
        peers: Peers,
        checkpoints: Checkpoints,
        checking: Checking = ALWAYS,
        place: Place = (),
    ) -> None:
        self.name, self.device, self.work, self.peers, self.checkpoints = name, device, work, peers, checkpoints
        self.checking, self.place = checking, place
        self.trap = Trap()
        self.held: Held | None = None
        self.new: Held | None = None  # not committed yet
        self.at_hand: dict[int, AtHand] = {}  # by shard, for `held`
        self.seen = Attempt(-1, 0)
        self.board = Board()
        self._wary = False
        self._does: dict[type, Callable[[Any], Answer | None]] = {
            m.Report: self._report,
            m.Compute: self._compute,
            m.Recompute: self._recompute,
            m.Update: self._update,
            m.Commit: self._commit,
            m.Fetch: self._fetch,
        }

    def hello(self) -> m.Hello:
        return m.Hello(self.name, self.device, self.work is not None, self.place)

    # --- commands ---

    def hear(self, command: m.ToSlice) -> bool:
        """At once, even while something else is done: whether this command is to be obeyed."""
        if isinstance(command, m.Dismiss):
            return command.attempt.controller >= self.seen.controller
        if command.slice != self.name or command.attempt < self.seen:
            return False
        self.seen = command.attempt
        return True

    def obey(self, command: m.ToSlice) -> Answer | None:
        """Does it; None where there is nothing to say or a newer command has come meanwhile."""
        if isinstance(command, m.Dismiss):
            return Answer(self.hello())
        return self._does[type(command)](command)

    def save(self, command: m.Save) -> Answer | None:
        """Beside other work: writes the committed state to disk."""
        held = self.held
        if held is None or held.copy != command.copy:
            return None
        self.trap.spring(Point.SAVE)
        return Answer(m.Saved(command.copy)) if self.checkpoints.save(command.copy, held.leaves) else None

    def _digest(self, step: int, names: Sequence[str], leaves: Leaves) -> int:
        return state_digest(names, leaves) if self.checking.at(step) else 0

    def _adopt(self, copy: Copy) -> bool:
        """Whether this committed state is held, after taking it over from `new`."""
        if self.new is not None and self.new.copy == copy:
            self.held, self.new, self.at_hand, self._wary = self.new, None, {}, False
        return self.held is not None and self.held.copy == copy

    def _commit(self, command: m.Commit) -> None:
        self._adopt(command.copy)

    def _report(self, command: m.Report) -> Answer:
        if command.committed is not None:
            self._adopt(command.committed)
        if (held := self.held) is None:
            return Answer(m.Reported(self.name, command.attempt, None))
        digest = self._digest(held.step, held.names, held.leaves)
        return Answer(m.Reported(self.name, command.attempt, held.step, digest, held.agreed))

    def _compute(self, command: m.Compute) -> Answer | None:
        if not self._adopt(command.base):
            return None
        self._wary = self._wary or (command.since == command.attempt and bool(self.at_hand))
        for shard in command.shards:
            if shard not in self.at_hand or self.at_hand[shard].attempt < command.since:
                if self.seen != command.attempt:
                    return None
                self._gradient(command.attempt, shard)
        digests = tuple((shard, self.at_hand[shard].header.digest()) for shard in command.shards)
        suspicious = tuple(shard for shard in command.shards if self._is_suspicious(self.at_hand[shard]))
        return Answer(m.Computed(self.name, command.attempt, digests, suspicious))

    def _gradient(self, attempt: Attempt, shard: int) -> AtHand:
        assert self.held is not None and self.work is not None
        self.trap.spring(Point.GRADIENT)
        part = self.work.gradient(self.held.leaves, self.held.step, shard)
        header = (
            Header.of(part) if self.checking.at(self.held.step) else Header(np.zeros((0, 2)), part.scalars, part.cursor)
        )
        norm = math.sqrt(float(np.vdot(part.gradient, part.gradient))) / float(part.scalars["weight"])
        self.at_hand[shard] = AtHand(attempt, part, header, norm)
        return self.at_hand[shard]

    def _is_suspicious(self, made: AtHand) -> bool:
        assert self.held is not None
        return not math.isfinite(made.norm) or made.norm > SPIKE * self.held.norm

    def _recompute(self, command: m.Recompute) -> Answer | None:
        if self.held is None or self.held.copy != command.base:
            return None
        made = self._gradient(command.attempt, command.shard)
        return Answer(m.Recomputed(self.name, command.attempt, command.shard, made.header.digest()))

    def _update(self, command: m.Update) -> Answer | None:
        if not self._adopt(command.base) or self.seen != command.attempt:
            return None
        assert self.held is not None and self.work is not None
        own = {s: (made.part, made.header) for s, made in self.at_hand.items() if command.owners[s] == self.name}
        exchange = Exchange(
            self.name, command, own, self.peers, self.board, self.checking.at(self.held.step), self._wary
        )
        try:
            self.trap.spring(Point.EXCHANGE)
            sums = exchange.run()
        except PeerFailed as failure:
            return Answer(m.Stuck(self.name, command.attempt, failure.peer))
        except Dropped:
            return Answer(m.Stuck(self.name, command.attempt, command.owners[0]))
        self.trap.spring(Point.UPDATE)
        leaves = self.work.update(self.held.leaves, sums.total, sums.scalars["weight"], sums.cursors)
        digest = self._digest(self.held.step + 1, self.work.names, leaves)
        norm = max((made.norm for made in self.at_hand.values()), default=math.inf)
        self.new = Held(self.held.step + 1, self.work.names, leaves, digest, norm)
        return Answer(m.Updated(self.name, command.attempt, digest), sums.scalars)

    # --- copies ---

    def _fetch(self, command: m.Fetch) -> Answer:
        digest = self._receive(command)
        return Answer(m.Fetched(self.name, command.attempt, command.source, digest))

    def _receive(self, command: m.Fetch) -> int | None:
        """The digest of what has come; kept if it is the right one."""
        copy = command.copy
        if self._adopt(copy) and self.held is not None:
            digest = self._digest(copy.step, self.held.names, self.held.leaves)
            if digest == copy.digest:
                return digest
        given = self._given(command)
        if given is None:
            return None
        names, leaves = given
        digest = self._digest(copy.step, names, leaves)
        if copy.digest in (None, digest):
            self.held, self.new, self.at_hand = Held(copy.step, tuple(names), leaves, digest), None, {}
        return digest

    def _given(self, command: m.Fetch) -> tuple[Sequence[str], Leaves] | None:
        if command.source == m.FIRST:
            assert self.work is not None
            return self.work.names, self.work.first()
        if command.source == m.DISK:
            leaves = self.checkpoints.load(command.copy)
            return None if leaves is None else (self.checkpoints.names, self._own(leaves))
        try:
            self.trap.spring(Point.COPY)
            given = self.peers.ask(command.source, "state_of", command.copy).result(math.inf)
        except (PeerFailed, Dropped):
            return None
        return None if given is None else (given[0], self._own(given[1]))

    def _own(self, leaves: Sequence[np.ndarray]) -> Leaves:
        """Arrays of this process, on its device if it computes; what came may be shared memory of another."""
        if self.work is None:
            return [np.array(leaf, copy=True) for leaf in leaves]
        return [np.array(leaf, copy=True) if leaf.dtype == np.int64 else jnp.array(leaf, copy=True) for leaf in leaves]

    # --- what peers ask for; called while commands are obeyed ---

    def pieces(
        self, base: Copy, shards: Sequence[int], ranges: Sequence[Blocks]
    ) -> dict[int, tuple[Header, list[np.ndarray]]]:
        """Headers and ranges of blocks of gradients at hand for `base`; what is not at hand is not in it."""
        if self.held is None or self.held.copy != base:
            return {}
        made = {shard: self.at_hand.get(shard) for shard in shards}
        return {
            shard: (at.header, [at.part.gradient[begin:end] for begin, end in ranges])
            for shard, at in made.items()
            if at is not None
        }

    def sum_of(self, key: Any, timeout_s: float) -> np.ndarray | None:
        """This slice's range of an update's sum, once it is there."""
        return self.board.wait(key, timeout_s)

    def state_of(self, copy: Copy) -> tuple[tuple[str, ...], list[np.ndarray]] | None:
        """The state, as it is now: who fetches it digests it."""
        self.trap.spring(Point.COPY)
        for held in (self.held, self.new):
            if held is not None and held.copy == copy:
                return held.names, [np.asarray(leaf) for leaf in held.leaves]
        return None

    def spoil(self, leaf: int, byte: int, bit: int) -> None:
        """Turns over one bit of the held state, as a bad memory does."""
        assert self.held is not None
        leaves = list(self.held.leaves)
        spoiled = flipped(np.asarray(leaves[leaf]), byte, bit)
        leaves[leaf] = spoiled if self.work is None or spoiled.dtype == np.int64 else jnp.asarray(spoiled)
        self.held = Held(self.held.step, self.held.names, leaves, self.held.agreed, self.held.norm)
