"""What slices and the driver tell the controller (events), and what it asks of them (commands).

Plain frozen values: they can be pickled, logged, compared and replayed. Seconds are floats with the suffix `_s`;
digests are integers of 64 bits or more. Every answer repeats the `attempt` of the command that it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from geminid.runtime.replicas import Place, hazards

DISK = "disk"  # as a `Fetch.source`: the checkpoint of that step
COPIES_S = 600.0  # at most so long is a copy missing before another has been made
FIRST = "first"  # as a `Fetch.source`: the recipe's own first state, made from its seed


class Attempt(NamedTuple):
    """One try at one thing. Later tries, and all tries of later controllers, compare greater."""

    controller: int  # counts the controllers that this run has had
    number: int


class Copy(NamedTuple):
    """A state of the run: `step` steps have gone into it."""

    step: int
    digest: int | None  # None: not known yet, for the first state


class Waiting(StrEnum):
    """What the controller may be waiting for."""

    REPORTS = "reports"
    GRADIENTS = "gradients"
    OPINIONS = "opinions"
    FETCHES = "fetches"
    COPIES = "copies"  # to be reached again
    UPDATES = "updates"
    SLICES = "slices"


class Finding(StrEnum):
    """What a `Record` is about."""

    LOST = "lost"
    DISAGREEMENT = "disagreement"
    BAD_COPY = "bad copy"
    CLEAN = "clean"  # a questioned gradient was right
    TRANSIENT = "transient"
    STICKY = "sticky"
    WITNESS = "faulty witness"
    NONDETERMINISM = "software non-determinism"
    UNDECIDED = "no third opinion"
    QUARANTINED = "quarantined"
    PROMOTED = "promoted"
    ROLLBACK = "rollback"


# --- events of the driver's own register: never lost on a network, may come twice ---


@dataclass(frozen=True, slots=True)
class Hello:
    """A slice is ready for work: programs compiled, nothing in progress. Each start of a process has a new name."""

    slice: str
    device: str  # what is quarantined: a restarted process on the same hardware does not come back
    computes: bool = True  # False: it keeps copies in memory, no more
    place: Place = ()  # its failure domains; (): it shares none


@dataclass(frozen=True, slots=True)
class Start:
    """The controller may begin. A later controller gets the slices and checkpoints that are found."""

    slices: tuple[Hello, ...]
    checkpoints: tuple[Copy, ...] = ()  # on disk, oldest first


@dataclass(frozen=True, slots=True)
class Lost:
    """The driver has seen a slice's process end."""

    slice: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """Somebody vouches for a device again."""

    device: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline of a `Wait` has passed."""

    wait: int


# --- events from slices: may be late, twice, out of order, or lost ---


@dataclass(frozen=True, slots=True)
class Reported:
    """What a slice holds; `digest` was computed just now, `agreed` is what was committed."""

    slice: str
    attempt: Attempt
    step: int | None  # None: no state
    digest: int = 0
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class Computed:
    """Gradients are at hand: (shard, digest) of each; `suspicious` names shards with a NaN or a spike."""

    slice: str
    attempt: Attempt
    digests: tuple[tuple[int, int], ...]
    suspicious: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One shard's gradients, computed anew."""

    slice: str
    attempt: Attempt
    shard: int
    digest: int


@dataclass(frozen=True, slots=True)
class Updated:
    """The next state is at hand, beside the committed one."""

    slice: str
    attempt: Attempt
    digest: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """The exchange failed: `peer` did not give its gradients, or not those of the promised digest."""

    slice: str
    attempt: Attempt
    peer: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A copy has arrived; `digest` was computed from what arrived. None: the source did not deliver."""

    slice: str
    attempt: Attempt
    source: str
    digest: int | None


@dataclass(frozen=True, slots=True)
class Saved:
    """A disk checkpoint is complete and was read back."""

    copy: Copy


Event = Start | Hello | Lost | Repaired | Expired | Reported | Computed | Recomputed | Updated | Stuck | Fetched | Saved


# --- commands. A slice obeys no attempt that is older than the newest it has seen ---


@dataclass(frozen=True, slots=True)
class Report:
    """Say what you hold: digest it now, do not remember. If you have `committed` as a new state, it is the run's."""

    slice: str
    attempt: Attempt
    committed: Copy | None


@dataclass(frozen=True, slots=True)
class Compute:
    """`base` is committed: drop older states. Compute the gradients of `shards` at it; answer `Computed`.

    What is at hand for the same base from attempt `since` or later is answered at once.
    """

    slice: str
    attempt: Attempt
    base: Copy
    cursor: int  # logical shard m of this step reads position cursor + m of the data
    shards: tuple[int, ...]
    since: Attempt


@dataclass(frozen=True, slots=True)
class Recompute:
    """Compute one shard anew, replace what was at hand; answer `Recomputed`."""

    slice: str
    attempt: Attempt
    base: Copy
    cursor: int
    shard: int


@dataclass(frozen=True, slots=True)
class Update:
    """Get all shards' gradients, check their digests, add them in shard order, update; answer `Updated` or `Stuck`.

    The committed state stays beside the new one. Whoever is not heard from within `exchange_s` is the peer of `Stuck`.
    """

    slice: str
    attempt: Attempt
    base: Copy
    owners: tuple[str, ...]  # by shard
    digests: tuple[int, ...]  # by shard: what was audited is what is added
    exchange_s: float


@dataclass(frozen=True, slots=True)
class Commit:
    """The new state is the run's; the one before may go. Should this be lost, the next `base` says the same."""

    slice: str
    attempt: Attempt
    copy: Copy


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the state `copy` from `source`, digest it, keep it if the digest fits; answer `Fetched`.

    Who holds this very state, and finds by digest that it still does, answers at once.
    """

    slice: str
    attempt: Attempt
    source: str
    copy: Copy


@dataclass(frozen=True, slots=True)
class Save:
    """Write the committed state to disk beside the run; then `Saved`. Nobody waits for it."""

    slice: str
    attempt: Attempt
    copy: Copy


@dataclass(frozen=True, slots=True)
class Dismiss:
    """You were given up: stop what you do, keep what you hold, say `Hello` when you can.

    Obeyed unless a later controller has been heard.
    """

    slice: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Wait:
    """For the driver: after `deadline_s` say `Expired(wait)`."""

    wait: int
    what: Waiting
    for_whom: tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """For the run's log."""

    finding: Finding
    slices: tuple[str, ...]
    step: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """All steps are committed."""

    copy: Copy


@dataclass(frozen=True, slots=True)
class Fail:
    """The run cannot go on; nothing was overwritten."""

    reason: str


Command = Report | Compute | Recompute | Update | Commit | Fetch | Save | Dismiss | Wait | Record | Finish | Fail
ToSlice = Report | Compute | Recompute | Update | Commit | Fetch | Save | Dismiss


# --- what the controller is told once ---


@dataclass(frozen=True)
class Deadlines:
    """How long the controller waits before it gives somebody up, in seconds."""

    report_s: float = 10.0
    shard_s: float = 30.0  # the gradients of one logical shard
    update_s: float = 60.0  # exchange and update
    exchange_s: float = 20.0  # within it: a slice gives up on a peer first, so that it can say on whom
    fetch_s: float = 60.0
    rejoin_s: float = 3600.0  # for a slice to come, when there are too few


@dataclass(frozen=True)
class Policy:
    """What the run wants.

    Raises ValueError where no run could follow it.
    """

    num_shards: int  # logical shards a step: the recipe's, however many slices there are
    num_steps: int
    slices: int  # active slices wanted
    min_slices: int = 1  # with fewer the run waits: 1 is elastic, `slices` is not
    copies: int = 2  # of each committed state, in memory, as far as there are standbys and keepers
    audit_every: int | None = None  # steps; one shard is recomputed elsewhere before the update
    save_every: int | None = None  # steps
    max_replays: int = 3  # of one step that nobody can be blamed for
    max_strikes: int = 2  # transient faults after which a device is quarantined
    roll_calls: int = 3  # how often slices are asked what they hold before the disk is
    hazards: tuple[float, ...] = hazards(COPIES_S)  # of failure domains by level; they choose who holds copies
    copy_tries: int = 10  # how often a copy that is known to be intact is fetched before the disk's, with pauses
    deadlines: Deadlines = Deadlines()

    def __post_init__(self) -> None:
        if min(self.num_shards, self.slices, self.min_slices) < 1 or self.num_steps < 0:
            raise ValueError(
                f"a run needs shards, slices and steps: num_shards {self.num_shards}, slices {self.slices}, "
                f"min_slices {self.min_slices}, num_steps {self.num_steps}"
            )
        if self.min_slices > self.slices:
            raise ValueError(f"min_slices {self.min_slices} is more than the {self.slices} slices wanted; lower it")
        if self.deadlines.exchange_s >= self.deadlines.update_s:
            raise ValueError(
                f"exchange_s {self.deadlines.exchange_s} must be less than update_s {self.deadlines.update_s}: "
                "a slice must say on whom it waits before it is given up itself"
            )


def names(slices: Sequence[str]) -> str:
    """For sentences."""
    return ", ".join(slices) or "nobody"
