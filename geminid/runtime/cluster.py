"""Slices as Ray actors: started, asked, watched and ended.

An actor is called DEVICE@CONTROLLER.NUMBER in the run's namespace and is detached: it outlives the controller, which
finds it by this name. Actors ask each other directly; what they hand over goes through Ray's object store.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from geminid.runtime import messages as m
from geminid.runtime.exchange import PeerFailed
from geminid.runtime.faults import Harm, Point
from geminid.runtime.replicas import FAULTS_A_DAY, Place
from geminid.runtime.requests import ALWAYS, Checking
from geminid.runtime.slice import Answer
from geminid.runtime.work import Job

ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "RAY_DEDUP_LOGS": "0"}
PLACE = "GEMINID_PLACE"  # environment variable of a node, set where `ray start` is called
SERVERS = 16  # threads that answer peers
ATTEMPTS = 5  # to start a device's process in a row, before it is left alone
LONGEST_S = 3600.0  # for a copy; the controller's deadline comes first


@dataclass(frozen=True)
class Spec:
    """What all slices of a run are started with."""

    job: Job
    checkpoints: Path
    one_core: bool  # each computes on one core, as on a laptop: with another number of cores the bits differ
    checking: Checking = ALWAYS
    resources: tuple[tuple[str, float], ...] = ()  # Ray's, by name: of one process that computes
    processes: int = 1  # of one slice


def place() -> Place:
    """Failure domains of this process: PLACE, such as pod-0/cube-3/host-7, or its node of the cluster alone."""
    named = os.environ.get(PLACE, "")
    levels = tuple(named.split("/")) if named else (ray.get_runtime_context().get_node_id(),)
    if len(levels) > len(FAULTS_A_DAY):
        raise ValueError(f"{PLACE} is '{named}'; give at most {len(FAULTS_A_DAY)} levels: {'/'.join(FAULTS_A_DAY)}")
    return levels


def pin(cores: Sequence[int]) -> None:
    """All threads of this process, and those that they start, on these cores; before JAX starts its own."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    there = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {there[core % len(there)] for core in cores})


def prepare(one_core: bool) -> None:
    """Before the first program: compiled ones are kept, and freed memory."""
    from geminid.train.compiled import keep_compiled
    from geminid.train.memory import keep_memory

    keep_memory()
    keep_compiled("compiled-one-core" if one_core else "compiled", 0.0)


def actor_options(spec: Spec) -> dict[str, Any]:
    """Ray's, of a process that computes."""
    wanted = dict(spec.resources)
    return {
        "num_cpus": wanted.pop("CPU", 0), "num_gpus": wanted.pop("GPU", 0), "resources": wanted,
        "runtime_env": {"env_vars": ENVIRONMENT},
    }  # fmt: skip


class RayTicket:
    """See `geminid.runtime.exchange.Ticket`."""

    def __init__(self, peer: str, ref: Any) -> None:
        self.peer, self.ref = peer, ref

    def result(self, timeout_s: float) -> Any:
        try:
            return ray.get(self.ref, timeout=min(timeout_s, LONGEST_S))
        except GetTimeoutError:
            raise PeerFailed(self.peer, f"silent for {timeout_s:g} s") from None
        except RayError as error:
            raise PeerFailed(self.peer, type(error).__name__) from None


class RayPeers:
    """See `geminid.runtime.exchange.Peers`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.handles: dict[str, Any] = {}

    def ask(self, peer: str, what: str, *args: Any) -> RayTicket:
        try:
            if peer not in self.handles:
                self.handles[peer] = ray.get_actor(peer, self.namespace)
        except ValueError as error:
            raise PeerFailed(peer, "it is gone") from error
        return RayTicket(peer, getattr(self.handles[peer], what).remote(*args))


class SliceActor:
    """One slice in a process of its own. Asynchronous: it is asked for pieces while it computes."""

    def __init__(self, spec: Spec, name: str, device: str, number: int, computes: bool, namespace: str) -> None:
        self._cores = [(number * spec.processes + k,) if spec.one_core else () for k in range(spec.processes)]
        pin(self._cores[0])
        self._spec, self._name, self._device, self._computes = spec, name, device, computes
        self._namespace = namespace
        self._worker = ThreadPoolExecutor(1, "work")
        self._saver = ThreadPoolExecutor(1, "save")
        self._servers = ThreadPoolExecutor(SERVERS, "serve")
        self._shard_s = 0.0
        self._slice: Any = None

    async def ready(self) -> tuple[m.Hello, float, int]:
        """When programs are compiled: the greeting, seconds of one shard's gradients, process id."""
        return await self._in(self._worker, self._prepare)

    def _prepare(self) -> tuple[m.Hello, float, int]:
        from geminid.runtime.checkpoints import Checkpoints
        from geminid.runtime.slice import Slice

        if self._slice is None:
            prepare(self._spec.one_core)
            work = self._work() if self._computes else None
            self._shard_s = work.warm_up() if work is not None else 0.0
            checkpoints = Checkpoints(self._spec.checkpoints, work.names if work is not None else ())
            peers = RayPeers(self._namespace)
            self._slice = Slice(self._name, self._device, work, peers, checkpoints, self._spec.checking, place())
        return self._slice.hello(), self._shard_s, os.getpid()

    def _work(self) -> Any:
        from geminid.runtime.span import lead
        from geminid.runtime.work import JointWork

        if self._spec.processes == 1:
            return JointWork(self._spec.job)
        return lead(self._spec.job, self._spec.processes, tuple(self._cores[1:]), actor_options(self._spec))

    async def alive(self) -> None:
        """Never answers: an error from this call is the death of the process."""
        await asyncio.Event().wait()

    async def obey(self, command: m.ToSlice) -> Answer | None:
        if not self._slice.hear(command):
            return None
        if isinstance(command, m.Save):
            return await self._in(self._saver, self._slice.save, command)
        return await self._in(self._worker, self._slice.obey, command)

    async def pieces(self, *args: Any) -> Any:
        return await self._in(self._servers, self._slice.pieces, *args)

    async def sum_of(self, *args: Any) -> Any:
        return await self._in(self._servers, self._slice.sum_of, *args)

    async def state_of(self, *args: Any) -> Any:
        return await self._in(self._servers, self._slice.state_of, *args)

    async def finish(self) -> None:
        """Writes the finished stage's parameters."""
        await self._in(self._worker, lambda: self._slice.work.finish(self._slice.held.leaves))

    async def arm(self, point: Point, harm: Harm, log: Path) -> None:
        """For fault injection."""
        self._slice.trap.log = log
        self._slice.trap.arm(point, harm)

    async def spoil(self, leaf: int, byte: int, bit: int) -> None:
        """For fault injection."""
        await self._in(self._worker, self._slice.spoil, leaf, byte, bit)

    async def _in(self, pool: ThreadPoolExecutor, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


@dataclass
class Process:
    """A slice's process, as the driver knows it."""

    name: str
    device: str
    computes: bool
    handle: Any  # Ray's
    pid: int = 0


class RayTransport:
    """See `geminid.runtime.driver.Transport`. Keeps one process running for each device."""

    def __init__(self, spec: Spec, namespace: str, incarnation: int) -> None:
        self.spec, self.namespace, self.incarnation = spec, namespace, incarnation
        self.processes: dict[str, Process] = {}
        self.shard_s = 0.0  # of the slowest slice when it was warm
        self.failures: list[str] = []  # why processes did not come up
        self._actor = ray.remote(SliceActor)
        self._asked: dict[Any, tuple[str, str]] = {}  # ref -> what was asked, of which slice
        self._numbers = 0
        self._tries: dict[str, int] = {}

    # --- starting and finding ---

    def spawn(self, device: str, number: int, computes: bool = True) -> str:
        """Starts a process for a device; `Hello` follows when it is warm. number: chooses its core."""
        self._numbers += 1
        name = f"{device}@{self.incarnation}.{self._numbers}"
        options = actor_options(self.spec) if computes else {"num_cpus": 0}
        handle = self._actor.options(
            name=name, namespace=self.namespace, lifetime="detached", max_restarts=0, max_concurrency=1000,
            scheduling_strategy="SPREAD",
            **{"runtime_env": {"env_vars": ENVIRONMENT}, **options},
        ).remote(self.spec, name, device, number, computes, self.namespace)  # fmt: skip
        self._watch(Process(name, device, computes, handle))
        return name

    def find(self) -> list[str]:
        """Takes over the processes that an earlier controller started; names of those that answer at all."""
        for name in ray.util.list_named_actors():
            if "@" in name and name not in self.processes:
                device = name.partition("@")[0]
                handle = ray.get_actor(name, self.namespace)
                self._watch(Process(name, device, not device.startswith("keeper"), handle))
        return list(self.processes)

    def _watch(self, process: Process) -> None:
        self.processes[process.name] = process
        self._asked[process.handle.ready.remote()] = ("ready", process.name)
        self._asked[process.handle.alive.remote()] = ("alive", process.name)

    # --- as a Transport ---

    def send(self, command: m.ToSlice) -> None:
        process = self.processes.get(command.slice)
        if process is not None:
            self._asked[process.handle.obey.remote(command)] = ("obey", process.name)

    def poll(self, timeout_s: float) -> Iterable[Answer]:
        refs = list(self._asked)
        ready, _ = ray.wait(refs, num_returns=1, timeout=min(timeout_s, LONGEST_S))
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            asked = self._asked.pop(ref, None)
            if asked is not None:
                yield from self._answers(ref, *asked)

    def _answers(self, ref: Any, what: str, name: str) -> Iterable[Answer]:
        try:
            value = ray.get(ref)
        except RayActorError:
            yield from self._lost(name, "its process ended")
            return
        except RayError as error:  # an exception within the slice: it is in no known state
            yield from self._lost(name, " ".join(str(error).split())[-300:])
            return
        if what == "ready":
            hello, shard_s, self.processes[name].pid = value
            self.shard_s = max(self.shard_s, shard_s)
            self._tries.pop(self.processes[name].device, None)
            yield Answer(hello)
        elif value is not None:
            yield value

    def _lost(self, name: str, why: str) -> Iterable[Answer]:
        process = self.processes.pop(name, None)
        if process is None:
            return
        self.failures.append(f"{name}: {why}")
        ray.kill(process.handle)
        yield Answer(m.Lost(name))
        self._tries[process.device] = self._tries.get(process.device, 0) + 1
        if self._tries[process.device] <= ATTEMPTS:
            self.spawn(process.device, _number(process.device), process.computes)

    def give_up(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            ray.kill(process.handle)

    def close(self) -> None:
        """Ends all processes of the run."""
        for process in self.processes.values():
            ray.kill(process.handle)


def end_all() -> None:
    """Ends every named actor of this namespace: those of a cluster that was joined would outlive the run."""
    for name in ray.util.list_named_actors():
        with suppress(ValueError):
            ray.kill(ray.get_actor(name))


def _number(device: str) -> int:
    return int(device.rpartition("-")[2])


def devices(slices: int, standbys: int, keepers: int) -> list[tuple[str, bool]]:
    """(name, whether it computes) of every device of a run; the first `slices` begin."""
    return [(f"slice-{k}", True) for k in range(slices + standbys)] + [(f"keeper-{k}", False) for k in range(keepers)]


def deadlines(shard_s: float, num_shards: int) -> m.Deadlines:
    """Well above what is normal when one slice computes all shards while others start on the same machine."""
    shard = max(2.0, 20.0 * shard_s)
    exchange = max(4.0, shard)
    return m.Deadlines(
        report_s=10.0, shard_s=shard, exchange_s=exchange, update_s=3 * exchange, fetch_s=60.0, rejoin_s=600.0
    )


def start(address: str | None, namespace: str) -> None:
    """Joins the Ray cluster at `address`, or starts one on this machine that ends with this process.

    Names of actors are looked up in `namespace` from here on, in actors too.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": max(8, os.cpu_count() or 1)}
    ray.init(
        **options, namespace=namespace, include_dashboard=None if address else False, log_to_driver=False,
        logging_level=logging.ERROR, configure_logging=True,
    )  # fmt: skip
