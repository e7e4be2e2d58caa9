"""Gradients of all logical shards, added in shard order: reduce-scatter, then all-gather, over the owners.

A gradient is BLOCKS blocks. Each owner gets its range of blocks of every shard, checks them against the digests that
the controller named, adds them in shard order in float32, and serves the sum to everybody. So the bits do not depend on
how many owners there are.

Had one of them added wrongly, all would hold the same wrong sum and their states would agree. So each slice adds one
block of somebody else's range again in every step, another one each time, and all of them where a step is repeated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from geminid.runtime.digest import block_digests, combined
from geminid.runtime.messages import Copy, Update
from geminid.runtime.work import shards_of
from geminid.train.shards import BLOCKS, Part, add, add_scalars

Blocks = tuple[int, int]  # from one block to before another
Pieces = dict[int, np.ndarray]  # by shard: some blocks of its gradient, float32 [blocks rows lanes]


class PeerFailed(Exception):
    """A slice did not give what it was asked for, or not what was promised."""

    def __init__(self, peer: str, why: str) -> None:
        super().__init__(f"{peer}: {why}")
        self.peer = peer


class Ticket(Protocol):
    """An answer that is on its way."""

    def result(self, timeout_s: float) -> Any:
        """The answer; PeerFailed when the peer is dead or silent."""
        ...


class Peers(Protocol):
    """How a slice asks others: `what` is a method of theirs."""

    def ask(self, peer: str, what: str, *args: Any) -> Ticket: ...


@dataclass(frozen=True)
class Header:
    """A shard's gradients without the numbers. blocks: uint32 [BLOCKS 2], digests; scalars and cursor as in `Part`."""

    blocks: np.ndarray
    scalars: Mapping[str, np.float32]
    cursor: np.ndarray

    @classmethod
    def of(cls, part: Part) -> Header:
        return cls(block_digests(part.gradient), part.scalars, part.cursor)

    def digest(self) -> int:
        """Of everything that a shard gives to the step."""
        scalars = ";".join(f"{name} {value.tobytes().hex()}" for name, value in sorted(self.scalars.items()))
        return combined(self.blocks, scalars.encode(), self.cursor)


@dataclass(frozen=True)
class Sums:
    """What an update needs: total float32 [BLOCKS rows lanes], scalars of `add_scalars`, cursors int64 [M ...]."""

    total: np.ndarray
    scalars: dict[str, np.float32]
    cursors: np.ndarray


def ranges(owners: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Which blocks each of the distinct owners adds, in the order in which they own."""
    distinct = list(dict.fromkeys(owners))
    edges = [BLOCKS * k // len(distinct) for k in range(len(distinct) + 1)]
    return {name: (edges[k], edges[k + 1]) for k, name in enumerate(distinct)}


class Board:
    """Sums that this slice has added, for others to fetch, who may ask before they are there."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._key: tuple[Copy, tuple[int, ...], tuple[str, ...]] | None = None
        self._sum: np.ndarray | None = None

    def publish(self, command: Update, total: np.ndarray) -> None:
        with self._ready:
            self._key, self._sum = key_of(command), total
            self._ready.notify_all()

    def wait(self, key: Any, timeout_s: float) -> np.ndarray | None:
        """The sum of this update; None when it does not come in time."""
        with self._ready:
            self._ready.wait_for(lambda: self._key == key, timeout_s)
            return self._sum if self._key == key else None


def key_of(command: Update) -> tuple[Copy, tuple[int, ...], tuple[str, ...]]:
    """What a sum is the sum of, and how it is cut: whoever has the same key has the same ranges."""
    return command.base, command.digests, command.owners


@dataclass
class Exchange:
    """One update's exchange, as slice `me` sees it. own: this slice's shards; wary: check every block of every sum."""

    me: str
    command: Update
    own: Mapping[int, tuple[Part, Header]]
    peers: Peers
    board: Board
    checked: bool = True
    wary: bool = False

    def run(self) -> Sums:
        """PeerFailed names the slice that did not deliver."""
        cut = ranges(self.command.owners)
        mine = cut.get(self.me, (0, 0))
        tickets = {  # asked for at once: who has not added yet answers when it has
            owner: self.peers.ask(owner, "sum_of", key_of(self.command), self.command.exchange_s)
            for owner in cut
            if owner != self.me
        }
        again = self._added_again(mine) if self.checked and len(cut) > 1 else (0, 0)
        pieces, checks, headers = self._collect(mine, again)
        if self.me in cut:
            self.board.publish(self.command, add(in_order(pieces)))
        total = np.concatenate([self._sum_from(owner, tickets) for owner in cut])
        if again[1]:
            self._check_sums(total, again, add(in_order(checks)))
        ordered = [headers[shard] for shard in range(len(self.command.owners))]
        return Sums(total, add_scalars([h.scalars for h in ordered]), np.stack([h.cursor for h in ordered]))

    def _sum_from(self, owner: str, tickets: Mapping[str, Ticket]) -> np.ndarray:
        if owner == self.me:
            total = self.board.wait(key_of(self.command), 0.0)
        else:
            total = tickets[owner].result(self.command.exchange_s)
        if total is None:
            raise PeerFailed(owner, "it has no sum for this update")
        return total

    def _collect(self, *wanted: Blocks) -> tuple[Pieces, Pieces, dict[int, Header]]:
        """Two ranges of blocks of every shard, checked, and the headers of all shards."""
        asked = {
            owner: self.peers.ask(owner, "pieces", self.command.base, shards_of(self.command.owners, owner), wanted)
            for owner in ranges(self.command.owners)
            if owner != self.me
        }
        found: list[Pieces] = [
            {shard: part.gradient[begin:end] for shard, (part, _) in self.own.items()} for begin, end in wanted
        ]
        headers = {shard: header for shard, (_, header) in self.own.items()}
        for owner, ticket in asked.items():
            for shard, (headers[shard], given) in ticket.result(self.command.exchange_s).items():
                for pieces, (begin, _), piece in zip(found, wanted, given, strict=True):
                    pieces[shard] = piece
                    self._check_piece(owner, shard, headers[shard], piece, begin)
        for shard, owner in enumerate(self.command.owners):
            if shard not in headers or headers[shard].digest() != self.command.digests[shard]:
                raise PeerFailed(owner, f"it has no gradients of shard {shard} with the digest that was promised")
        return found[0], found[1], headers

    def _check_piece(self, owner: str, shard: int, header: Header, piece: np.ndarray, begin: int) -> None:
        if not self.checked or not len(piece):
            return
        if not np.array_equal(block_digests(piece), header.blocks[begin : begin + len(piece)]):
            raise PeerFailed(owner, f"blocks of shard {shard} arrived with other bits than were promised")

    def _added_again(self, mine: Blocks) -> Blocks:
        """Which blocks this slice adds although others do: one of theirs, that the step chooses, or all."""
        if self.wary:
            return 0, BLOCKS
        others = [block for block in range(BLOCKS) if not mine[0] <= block < mine[1]]
        block = others[self.command.base.step % len(others)]
        return block, block + 1

    def _check_sums(self, total: np.ndarray, blocks: Blocks, again: np.ndarray) -> None:
        for k, block in enumerate(range(*blocks)):
            if again[k].tobytes() != total[block].tobytes():
                owner = next(name for name, (a, b) in ranges(self.command.owners).items() if a <= block < b)
                raise PeerFailed(owner, f"block {block} of the sum is not the sum of the shards' blocks")


def in_order(pieces: Pieces) -> list[np.ndarray]:
    """Of all shards, by number."""
    return [pieces[shard] for shard in sorted(pieces)]
