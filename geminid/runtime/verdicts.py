"""Who computes what, and who is believed: pure functions of what was reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from geminid.runtime.messages import Finding


def assign(num_shards: int, slices: Sequence[str], before: Sequence[str] = ()) -> tuple[str, ...]:
    """The owner of each logical shard; loads differ by at most one.

    A shard stays with its owner before, as far as that is fair: what a slice has computed already is not computed
    again when another one is lost.
    """
    share, larger = divmod(num_shards, len(slices))
    load = dict.fromkeys(slices, 0)
    owners: dict[int, str] = {}
    for shard, owner in enumerate(before):
        if owner in load and load[owner] < share + (larger > 0):
            larger -= load[owner] == share  # this owner has one of the larger loads
            load[owner] += 1
            owners[shard] = owner
    for shard in range(num_shards):
        if shard not in owners:
            owners[shard] = min(load, key=lambda s: (load[s], s))
            load[owners[shard]] += 1
    return tuple(owners[shard] for shard in range(num_shards))


def majority(votes: Mapping[str, int | None]) -> int | None:
    """The digest that more than half of the slices gave, if there is one."""
    digest, count = Counter(votes.values()).most_common(1)[0]
    return digest if 2 * count > len(votes) else None


def judge(owner: str, original: int, opinions: Mapping[str, int]) -> Finding | None:
    """What the repetitions of one shard's gradients mean; None: ask one more.

    `opinions` are digests of repetitions, by the owner itself and by witnesses. Each slice has one vote: the owner's
    is its repetition. CLEAN needs no more than agreement with `original`.
    """
    if all(digest == original for digest in opinions.values()):
        return Finding.CLEAN
    if owner not in opinions or len(opinions) < 2:
        return None
    truth = majority(opinions)
    if truth is None:
        # two against each other need a third; three different answers are no single device's fault
        return None if len(opinions) < 3 else Finding.NONDETERMINISM
    if opinions[owner] != truth:
        return Finding.STICKY
    return Finding.WITNESS if original == truth else Finding.TRANSIENT
