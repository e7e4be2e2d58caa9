"""Gradients of all logical shards, added in shard order: reduce-scatter, then all-gather, over the owners.

A gradient is BLOCKS blocks. Each owner gets its range of blocks of every shard, checks them against the digests that
the controller named, adds them in shard order in float32, and serves the sum to everybody. So the bits do not depend on
how many owners there are. Most pieces travel while gradients are still computed: a slice sends those of a shard before
it begins with its next one. Those of its last shard, and what did not arrive, are asked for.

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


def wanted(owners: Sequence[str], name: str, step: int, checked: bool) -> tuple[Blocks, Blocks]:
    """What a slice gets of every shard: the blocks that it adds, and one of others' that it adds again."""
    cut = ranges(owners)
    mine = cut.get(name, (0, 0))
    if not checked or len(cut) == 1:
        return mine, (0, 0)
    others = [block for block in range(BLOCKS) if not mine[0] <= block < mine[1]]
    block = others[step % len(others)]
    return mine, (block, block + 1)


def is_intact(header: Header, piece: np.ndarray, begin: int) -> bool:
    """Whether these blocks have the digests that the header promises."""
    return not len(piece) or np.array_equal(block_digests(piece), header.blocks[begin : begin + len(piece)])


class Inbox:
    """Pieces of peers' shards that came before they were asked for; of each shard the newest."""

    def __init__(self) -> None:
        self._came: dict[tuple[Copy, int], tuple[Sequence[Blocks], Header, list[np.ndarray]]] = {}

    def put(self, base: Copy, shard: int, blocks: Sequence[Blocks], header: Header, pieces: list[np.ndarray]) -> None:
        self._came[base, shard] = blocks, header, pieces

    def get(
        self, base: Copy, shard: int, blocks: Sequence[Blocks], digest: int
    ) -> tuple[Header, list[np.ndarray]] | None:
        """If just these blocks came, of gradients of this digest."""
        found, header, pieces = self._came.get((base, shard), ((), None, []))
        return (header, pieces) if header and found == blocks and header.digest() == digest else None

    def forget(self, step: int) -> None:
        """What came for steps before this one."""
        for key in [key for key in list(self._came) if key[0].step < step]:
            self._came.pop(key, None)


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
    inbox: Inbox
    checked: bool = True
    wary: bool = False

    def run(self) -> Sums:
        """PeerFailed names the slice that did not deliver."""
        cut = ranges(self.command.owners)
        tickets = {  # asked for at once: who has not added yet answers when it has
            owner: self.peers.ask(owner, "sum_of", key_of(self.command), self.command.exchange_s)
            for owner in cut
            if owner != self.me
        }
        mine, again = wanted(self.command.owners, self.me, self.command.base.step, self.checked)
        if self.wary and again[1]:
            again = (0, BLOCKS)
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

    def _collect(self, *blocks: Blocks) -> tuple[Pieces, Pieces, dict[int, Header]]:
        """Two ranges of blocks of every shard, checked, and the headers of all shards."""
        base, owners, digests = self.command.base, self.command.owners, self.command.digests
        have = {
            shard: (header, [part.gradient[begin:end] for begin, end in blocks])
            for shard, (part, header) in self.own.items()
        }
        for shard in range(len(owners)):
            if shard not in have and (came := self.inbox.get(base, shard, blocks, digests[shard])):
                have[shard] = came
        lacking = {owner: [s for s in shards_of(owners, owner) if s not in have] for owner in ranges(owners)}
        asked = {
            owner: self.peers.ask(owner, "pieces", base, shards, blocks)
            for owner, shards in lacking.items()
            if shards and owner != self.me
        }
        for owner, ticket in asked.items():
            for shard, (header, given) in ticket.result(self.command.exchange_s).items():
                have[shard] = header, given
                for (begin, _), piece in zip(blocks, given, strict=True):
                    if self.checked and not is_intact(header, piece, begin):
                        raise PeerFailed(owner, f"blocks of shard {shard} arrived with other bits than were promised")
        headers = {shard: header for shard, (header, _) in have.items()}
        for shard, owner in enumerate(owners):
            if shard not in headers or headers[shard].digest() != digests[shard]:
                raise PeerFailed(owner, f"it has no gradients of shard {shard} with the digest that was promised")
        first, second = ({shard: given[k] for shard, (_, given) in have.items()} for k in range(2))
        return first, second, headers

    def _check_sums(self, total: np.ndarray, blocks: Blocks, again: np.ndarray) -> None:
        for k, block in enumerate(range(*blocks)):
            if again[k].tobytes() != total[block].tobytes():
                owner = next(name for name, (a, b) in ranges(self.command.owners).items() if a <= block < b)
                raise PeerFailed(owner, f"block {block} of the sum is not the sum of the shards' blocks")


def in_order(pieces: Pieces) -> list[np.ndarray]:
    """Of all shards, by number."""
    return [pieces[shard] for shard in sorted(pieces)]
