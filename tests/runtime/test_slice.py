"""Slices in one process: sums against brute force, peers that lie or die, copies that were spoiled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geminid.runtime import messages as m
from geminid.runtime.checkpoints import Checkpoints, found
from geminid.runtime.exchange import PeerFailed
from geminid.runtime.messages import Attempt, Copy
from geminid.runtime.requests import Checking
from geminid.runtime.slice import Answer, Slice
from geminid.train.shards import BLOCKS
from tests.runtime.local import SHARDS, Adding

ONCE = Attempt(0, 1)


@dataclasses.dataclass
class Now:
    """A ticket for what is asked at once, in this thread, when the answer is wanted."""

    peer: str
    call: Any

    def result(self, timeout_s: float) -> Any:
        if self.call is None:
            raise PeerFailed(self.peer, "dead")
        return self.call()


class Room:
    """Slices that ask each other directly. Sums are there only after the owner has updated: owners go in turn."""

    def __init__(self, names: str, directory: Path) -> None:
        self.slices = {
            name: Slice(name, f"device-{name}", Adding(), self, Checkpoints(directory, Adding.names)) for name in names
        }

    def ask(self, peer: str, what: str, *args: Any) -> Now:
        there = self.slices.get(peer)
        if there is None:
            return Now(peer, None)
        if what == "sum_of":
            return Now(peer, lambda: self.sum_of(there, *args))
        return Now(peer, lambda: getattr(there, what)(*args))

    def sum_of(self, there: Slice, key: Any, timeout_s: float) -> Any:
        """What its own thread would have added by now."""
        owners = key[2]
        begin, end = next(
            (BLOCKS * k // len(distinct), BLOCKS * (k + 1) // len(distinct))
            for distinct in [list(dict.fromkeys(owners))]
            for k in range(len(distinct))
            if distinct[k] == there.name
        )
        total = there.board.wait(key, 0.0)
        if total is None:
            parts = [self.slices[owner].at_hand[shard].part for shard, owner in enumerate(owners)]
            total = parts[0].gradient[begin:end].copy()
            for part in parts[1:]:
                total += part.gradient[begin:end]
        return total

    def begin(self) -> Copy:
        answers = [one.obey(m.Fetch(n, ONCE, m.FIRST, Copy(0, None))) for n, one in self.slices.items()]
        digests = {answer.event.digest for answer in answers}
        assert len(digests) == 1
        return Copy(0, digests.pop())

    def step(self, base: Copy, owners: str) -> tuple[dict[str, Answer], m.Update]:
        digests: dict[int, int] = {}
        for name, one in self.slices.items():
            mine = tuple(s for s, owner in enumerate(owners) if owner == name)
            if mine:
                one.hear(command := m.Compute(name, ONCE, base, base.step * SHARDS, mine, Attempt(0, 0)))
                digests.update(one.obey(command).event.digests)
        ordered = tuple(digests[shard] for shard in range(SHARDS))
        updates = {n: m.Update(n, ONCE, base, tuple(owners), ordered, 1.0) for n in self.slices}
        answers = {}
        for name, one in self.slices.items():
            one.hear(updates[name])
            answers[name] = one.obey(updates[name])
        return answers, updates[owners[0]]


def run(owners: list[str], directory: Path) -> tuple[int, np.ndarray]:
    room = Room("abc", directory)
    base = room.begin()
    for assigned in owners:
        answers, _ = room.step(base, assigned)
        digests = {answer.event.digest for answer in answers.values()}
        assert len(digests) == 1
        base = Copy(base.step + 1, digests.pop())
    for one in room.slices.values():
        one.obey(m.Commit(one.name, ONCE, base))
    return base.digest, np.asarray(room.slices["a"].held.leaves[0])


def test_whoever_owns_what_the_bits_are_those_of_a_sum_in_shard_order(tmp_path):
    work = Adding()
    leaves = work.first()
    for step in range(2):
        parts = [work.gradient(leaves, step, shard) for shard in range(SHARDS)]
        total = ((parts[0].gradient + parts[1].gradient) + parts[2].gradient) + parts[3].gradient
        leaves = work.update(leaves, total, np.float32(10), np.stack([part.cursor for part in parts]))
    results = [run(owners, tmp_path) for owners in (["aaaa", "aaaa"], ["abca", "ccbb"], ["bbbc", "abab"])]
    assert len({digest for digest, _ in results}) == 1
    for _, got in results:
        assert got.tobytes() == np.asarray(leaves[0]).tobytes()


def test_gradients_that_are_not_those_promised_are_not_added(tmp_path):
    room = Room("ab", tmp_path)
    base = room.begin()
    _, update = room.step(base, "abab")
    made = room.slices["b"].at_hand[1]
    spoiled = made.part.gradient.copy()
    spoiled[0, 0, 0] += 1e-7
    room.slices["b"].at_hand[1] = dataclasses.replace(made, part=dataclasses.replace(made.part, gradient=spoiled))
    answer = room.slices["a"].obey(dataclasses.replace(update, slice="a"))
    assert answer.event == m.Stuck("a", ONCE, "b")


def test_a_wrong_sum_that_all_would_share_is_found_in_the_block_that_is_added_again(tmp_path):
    room = Room("ab", tmp_path)
    base = room.begin()
    _, update = room.step(base, "abab")
    key = (update.base, update.digests, update.owners)
    wrong = room.slices["b"].board.wait(key, 0.0).copy()
    wrong[base.step] += 1.0  # the first of b's blocks: the one that a adds again at this step
    room.slices["b"].board.publish(update, wrong)
    answer = room.slices["a"].obey(dataclasses.replace(update, slice="a"))
    assert answer.event == m.Stuck("a", ONCE, "b")


def test_a_dead_peer_is_named(tmp_path):
    room = Room("ab", tmp_path)
    base = room.begin()
    _, update = room.step(base, "abab")
    del room.slices["b"]
    assert room.slices["a"].obey(dataclasses.replace(update, slice="a")).event == m.Stuck("a", ONCE, "b")


def test_a_copy_with_one_flipped_bit_is_refused_and_the_next_is_taken(tmp_path):
    room = Room("abc", tmp_path)
    base = room.begin()
    room.slices["a"].spoil(0, 5, 3)
    reported = room.slices["a"].obey(m.Report("a", ONCE, base)).event
    assert reported.digest != reported.agreed
    fetcher = room.slices["c"]
    fetcher.held = None
    bad = fetcher.obey(m.Fetch("c", ONCE, "a", base)).event
    assert bad.digest != base.digest and fetcher.held is None
    good = fetcher.obey(m.Fetch("c", ONCE, "b", base)).event
    assert good.digest == base.digest and fetcher.held.copy == base


def test_a_checkpoint_is_read_back_and_one_that_was_changed_later_is_not_believed(tmp_path):
    room = Room("a", tmp_path)
    base, one = room.begin(), room.slices["a"]
    assert one.save(m.Save("a", ONCE, base)) == Answer(m.Saved(base))
    assert found(tmp_path) == [base]
    one.held = None
    assert one.obey(m.Fetch("a", ONCE, m.DISK, base)).event.digest == base.digest
    files = [file for file in (tmp_path / "0").rglob("*") if file.is_file() and file.name != "verified.json"]
    for file in files:
        file.write_bytes(bytes(b ^ 1 for b in file.read_bytes()))
    one.held = None
    assert one.obey(m.Fetch("a", ONCE, m.DISK, base)).event.digest != base.digest
    assert one.held is None


def test_old_commands_are_not_heard(tmp_path):
    one = Room("a", tmp_path).slices["a"]
    assert one.hear(m.Commit("a", Attempt(1, 5), Copy(1, 1)))
    assert not one.hear(m.Commit("a", Attempt(0, 9), Copy(1, 1)))
    assert not one.hear(m.Commit("b", Attempt(1, 6), Copy(1, 1)))
    assert not one.hear(m.Dismiss("a", Attempt(0, 9)))


@pytest.mark.parametrize("block", [None, 1])
def test_a_spike_or_a_nan_is_called_suspicious(tmp_path, block):
    room = Room("a", tmp_path)
    base, one = room.begin(), room.slices["a"]
    one.checking = Checking(block)
    one.held = dataclasses.replace(one.held, step=1, norm=10.0)
    base = one.held.copy
    usual = one.work.gradient

    def gradient(leaves, step, shard):
        part = usual(leaves, step, shard)
        factor = {1: np.float32("nan"), 2: np.float32(1e4)}.get(shard, np.float32(1))
        return dataclasses.replace(part, gradient=part.gradient * factor)

    one.work.gradient = gradient
    one.hear(command := m.Compute("a", ONCE, base, 0, (0, 1, 2, 3), Attempt(0, 0)))
    assert one.obey(command).event.suspicious[:2] == (1, 2)
