"""The logical shards of a step's batch: M streams of packed batches, each with a cursor of its own.

Shard m packs documents m, m + M, m + 2M, ... M is the recipe's, so what a shard holds does not depend on who computes
it. A cursor is a row of integers: whoever has it goes on from there with the same batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from geminid.batches.packing import Batch, PackedBatches, PackedIterator, Shape
from geminid.tokens.ids import IdSpace
from geminid.tokens.stream import Stream

COUNTS = 4  # integers before the waiting documents: next document, positions filled, positions in all, how many wait


def shard_shape(shape: Shape, count: int) -> Shape:
    """Of one of `count` shards of a batch of this shape; what does not divide is left out of slots, not of answers."""
    return dataclasses.replace(
        shape,
        rows=shape.rows // count,
        pictures=shape.pictures // count,
        clips=shape.clips // count,
        answers=-(-shape.answers // count),
    )


class ShardedBatches:
    """Random access by (shard, cursor) to the batches of all shards.

    stream_of(i): the stream of document i, a pure function. shape: of the whole batch.
    """

    def __init__(
        self, stream_of: Callable[[int], Stream], shape: Shape, space: IdSpace, lookahead: int, count: int
    ) -> None:
        self.count, self.lookahead = count, lookahead
        self._make = [
            PackedBatches(lambda j, m=m: stream_of(j * count + m), shard_shape(shape, count), space, lookahead)
            for m in range(count)
        ]
        self._live: dict[int, PackedIterator] = {}
        self._last: dict[int, tuple[np.ndarray, Batch, np.ndarray]] = {}  # what is asked for twice is packed once

    def first(self) -> np.ndarray:
        """Cursors of all shards before the first step, int64 [M, COUNTS + lookahead]."""
        return np.zeros((self.count, COUNTS + self.lookahead), np.int64)

    def read(self, shard: int, cursor: np.ndarray) -> tuple[Batch, np.ndarray]:
        """The batch of `shard` at its cursor, int64 [COUNTS + lookahead], and the cursor after it."""
        last = self._last.get(shard)
        if last is not None and np.array_equal(last[0], cursor):
            return last[1:]
        iterator = self._live.get(shard)
        if iterator is None or last is None or not np.array_equal(last[2], cursor):
            iterator = self._live[shard] = iter(self._make[shard])
            iterator.set_state(iterator_state(cursor))
        self._last[shard] = cursor, next(iterator), cursor_row(iterator.get_state(), self.lookahead)
        return self._last[shard][1:]


def cursor_row(state: dict[str, Any], lookahead: int) -> np.ndarray:
    """A `PackedIterator`'s state as int64 [COUNTS + lookahead], zeros after the waiting documents."""
    waiting = state["waiting"]
    row = np.zeros(COUNTS + lookahead, np.int64)
    row[:COUNTS] = state["next_document"], state["filled"], state["total"], len(waiting)
    row[COUNTS : COUNTS + len(waiting)] = waiting
    return row


def iterator_state(row: np.ndarray) -> dict[str, Any]:
    """The reverse of `cursor_row`."""
    following, filled, total, count = (int(n) for n in row[:COUNTS])
    waiting = row[COUNTS : COUNTS + count].tolist()
    return {"next_document": following, "waiting": waiting, "filled": filled, "total": total}


def cursor_json(cursors: np.ndarray) -> dict[str, Any]:
    """Cursors of all shards, int64 [M, ...], as JSON values, with the sums that an evaluation reads."""
    states = [iterator_state(row) for row in cursors]
    return {"shards": states, **{name: sum(state[name] for state in states) for name in ("filled", "total")}}


class ShardedIterator(grain.DatasetIterator):
    """All shards of each step, for a loop that computes them one after another: lists of M batches."""

    def __init__(self, batches: ShardedBatches):
        super().__init__()
        self.batches = batches
        self.cursors = batches.first()

    def __next__(self) -> list[Batch]:
        read = [self.batches.read(shard, cursor) for shard, cursor in enumerate(self.cursors)]
        self.cursors = np.stack([cursor for _, cursor in read])
        return [batch for batch, _ in read]

    def get_state(self) -> dict[str, Any]:
        return cursor_json(self.cursors)

    def set_state(self, state: dict[str, Any]) -> None:
        self.cursors = np.stack([cursor_row(shard, self.batches.lookahead) for shard in state["shards"]])
