"""What a run of slices and a soak are asked for: plain values, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class Fleet:
    """How many processes a run has. ValueError where no run could be made of them."""

    slices: Annotated[int, arg(help="Slices that compute; 0 trains in one process without them.")] = 0
    standbys: Annotated[int, arg(help="Warm slices that stand by and audit.")] = 0
    keepers: Annotated[int | None, arg(help="Processes that only keep copies.")] = None
    min_slices: Annotated[int, arg(help="With fewer the run waits.")] = 1
    audit_every: Annotated[int | None, arg(help="Steps; then one shard is computed elsewhere, too.")] = 50
    save_every: Annotated[int | None, arg(help="Steps between disk checkpoints; the recipe's unless given.")] = None

    def __post_init__(self) -> None:
        if min(self.slices, self.standbys, self.keepers or 0) < 0:
            raise ValueError(
                f"{self.slices} slices, {self.standbys} standbys, {self.keepers or 0} keepers: none may be below 0"
            )
        if not self.slices and (self.standbys or self.keepers):
            raise ValueError("standbys and keepers need slices: give --slices, 1 or more")

    @property
    def num_keepers(self) -> int:
        return int(self.slices + self.standbys < 2) if self.keepers is None else self.keepers


@dataclass(frozen=True)
class Cluster:
    """Where slices run."""

    ray_address: Annotated[str | None, arg(help="Join this Ray cluster; one is started here unless given.")] = None
    processes: Annotated[int, arg(help="Processes of one slice, joined by jax.distributed.")] = 1
    gpus: Annotated[float, arg(help="GPUs of one process.")] = 0
    tpus: Annotated[float, arg(help="TPU chips of one process.")] = 0
    metrics_port: Annotated[int | None, arg(help="Port at which the controller serves Prometheus metrics.")] = None
    metrics_host: Annotated[str, arg(help="Address that it listens at; 0.0.0.0 for other machines.")] = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--processes is {self.processes}; a slice has at least 1")
        if self.metrics_port is not None and not 0 < self.metrics_port < 1 << 16:
            raise ValueError(f"--metrics-port is {self.metrics_port}; ports go from 1 to 65535")

    @property
    def resources(self) -> tuple[tuple[str, float], ...]:
        """Ray's, of one slice; none on a laptop."""
        return tuple((name, count) for name, count in (("GPU", self.gpus), ("TPU", self.tpus)) if count)


NO_FLEET, HERE = Fleet(), Cluster()


@dataclass(frozen=True)
class Checking:
    """In which steps digests are made and compared: in all, but where their cost is measured.

    block: steps; then every other block of so many steps goes without.
    """

    block: int | None = None

    def at(self, step: int) -> bool:
        """step: committed steps before it."""
        return self.block is None or step // self.block % 2 == 0


ALWAYS = Checking()


@dataclass(frozen=True)
class SoakRequest:
    """What is done to which run."""

    slices: Annotated[int, arg(help="Slices that compute.")] = 3
    standbys: Annotated[int, arg(help="Slices that stand by.")] = 1
    kills: Annotated[int, arg(help="SIGKILL to a slice that computes.")] = 50
    stops: Annotated[int, arg(help="SIGSTOP to one: it hangs.")] = 0
    controllers: Annotated[int, arg(help="SIGKILL to the controller.")] = 0
    dead_standbys: Annotated[int, arg(help="SIGKILL to a standby.")] = 0
    restarts: Annotated[int, arg(help="In a run beside it: all slices killed at once, back from disk.")] = 5
    interval_s: Annotated[float | None, arg(help="Seconds between faults; soon after recovery unless given.")] = None
    seed: Annotated[int, arg(help="Other moments, other victims.")] = 0

    def __post_init__(self) -> None:
        counts = (self.kills, self.stops, self.controllers, self.dead_standbys, self.restarts)
        if min(counts) < 0 or not sum(counts[:-1]):
            raise ValueError(f"faults {counts} (kills, stops, controllers, dead_standbys, restarts): give at least one")
        if self.dead_standbys and not self.standbys:
            raise ValueError("dead_standbys needs standbys; --standbys 1")
        if self.slices + self.standbys < 2:
            raise ValueError("a soak needs two slices or a standby: with one copy of the state a kill goes to the disk")


PAIRS = 8  # of blocks, at least, that tell what something costs


@dataclass(frozen=True)
class OverheadRequest:
    """What is measured. ValueError where it could tell nothing."""

    slices: Annotated[int, arg(help="Slices that compute.")] = 2
    shards: Annotated[int, arg(help="Logical shards of a step.")] = 4
    steps: Annotated[int, arg(help="Of the joint stage.")] = 400
    block: Annotated[int, arg(help="Steps with all of it on, then as many with all of it off, and so on.")] = 5
    audit_every: Annotated[int, arg(help="Steps from one audit to the next.")] = 50

    def __post_init__(self) -> None:
        if self.slices < 2:
            raise ValueError(f"{self.slices} slices exchange nothing; give --slices 2 or more")
        if self.block < 2 or self.steps < 2 * PAIRS * self.block:
            raise ValueError(
                f"{self.steps} steps in blocks of {self.block} are fewer than {PAIRS} pairs of blocks of 2 or more:"
                f" give --steps {2 * PAIRS * max(2, self.block)} or more"
            )
        if self.shards < self.slices:
            raise ValueError(f"{self.shards} logical shards are not enough for {self.slices} slices; raise --shards")
        if self.audit_every < 1 or self.audit_every % (2 * self.block):
            raise ValueError(
                f"audits every {self.audit_every} steps fall into both kinds of blocks of {self.block}; give a multiple"
                f" of {2 * self.block}"
            )
