"""The run's one controller, in a process that may die: Ray starts it again, and it finds its slices by name."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from geminid.runtime import messages as m
from geminid.runtime.checkpoints import found
from geminid.runtime.cluster import RayTransport, Spec, deadlines, devices
from geminid.runtime.controller import Controller
from geminid.runtime.driver import Driver, Log
from geminid.runtime.metrics import Metrics, Snapshot
from geminid.runtime.requests import Cluster, Fleet
from geminid.runtime.timeline import Spans
from geminid.train.rundir import RunDir, read_json, write_json

START_S = 900.0  # for the first slices to be warm
GREET_S = 5.0  # for slices that an earlier controller has started
STATUS_S = 0.2


@dataclass(frozen=True)
class Places:
    """Where a run of slices keeps what is its own."""

    run: RunDir

    @property
    def events(self) -> Path:
        return self.run.path / "slices" / "events.jsonl"

    @property
    def ledgers(self) -> Path:
        return self.run.path / "slices" / "ledger"

    @property
    def status(self) -> Path:
        """{"step", "controller": pid, "incarnation", "slices": {name: {"pid", "device"}}}, a moment ago."""
        return self.run.path / "slices" / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.run.stage("joint") / "slices"


def namespace_of(run_dir: Path) -> str:
    """Ray's, one per run directory: a later controller finds the slices of this run and no other's."""
    return "geminid-" + hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:12]


class Conductor:
    """An actor: `run` is called once, and again by Ray if the process dies.

    session: names this launch among those of the run. stop_at: steps; None: the recipe's.
    """

    def __init__(self, spec: Spec, fleet: Fleet, cluster: Cluster, session: str, stop_at: int | None = None) -> None:
        self.spec, self.fleet, self.session = spec, fleet, session
        self.namespace = namespace_of(spec.job.run_dir)
        self.recipe = spec.job.recipe
        self.places = Places(RunDir(spec.job.run_dir))
        self._stop_at = stop_at
        self._shown = 0.0
        self.cluster = cluster
        self._metrics: Metrics | None = None

    def stop(self) -> None:
        """End the run at the next commit, beside `run`."""
        self._stop_at = 0

    def _is_to_stop(self, done: int) -> bool:
        return self._stop_at is not None and done >= self._stop_at

    def run(self) -> dict[str, object]:
        """Trains to the end: {"step", "digest", "controllers"}. RuntimeError says why the run cannot go on."""
        if (port := self.cluster.metrics_port) is not None:
            self._metrics = Metrics(port, self.cluster.metrics_host)
        incarnation = self._incarnation()
        transport = RayTransport(self.spec, self.namespace, incarnation)
        try:
            return self._conduct(transport, incarnation)
        finally:
            transport.close()

    def _incarnation(self) -> int:
        file = self.places.run.path / "slices" / "controller.json"
        incarnation = read_json(file).get("incarnations", 0)
        write_json(file, {"incarnations": incarnation + 1})
        return incarnation

    def _conduct(self, transport: RayTransport, incarnation: int) -> dict[str, object]:
        spans = Spans(self.places.ledgers / f"{incarnation}.json", self.session, self.fleet.slices)
        hellos = self._assemble(transport)
        joint = self.recipe.joint
        policy = m.Policy(
            num_shards=joint.shards,
            num_steps=joint.stage.steps,
            slices=self.fleet.slices,
            min_slices=self.fleet.min_slices,
            audit_every=self.fleet.audit_every,
            save_every=self.fleet.save_every or joint.stage.save_every,
            deadlines=deadlines(transport.shard_s, joint.shards),
        )
        log = Log(
            self.places.events, self.places.run.curve("joint"), joint.stage.log_every, joint.stage.steps, incarnation
        )
        controller = Controller(policy, incarnation)
        driver = Driver(controller, transport, log, spans, lambda done: self._show(transport, driver), self._is_to_stop)
        ending = driver.run(m.Start(tuple(hellos), tuple(found(self.places.checkpoints))))
        if ending.copy is None:
            raise RuntimeError(ending.reason)
        winner = next(name for name in controller.members.active if name in transport.processes)
        if ending.copy.step == policy.num_steps:
            ray.get(transport.processes[winner].handle.finish.remote())
        self._shown = 0.0
        self._show(transport, driver)
        return {
            "step": ending.copy.step,
            "digest": f"{ending.copy.digest:016x}",
            "controllers": incarnation + 1,
        }

    def _assemble(self, transport: RayTransport) -> list[m.Hello]:
        """Greetings of enough slices to begin with, or of all that an earlier controller left behind."""
        there = transport.find()
        fleet = devices(self.fleet.slices, self.fleet.standbys, self.fleet.num_keepers)
        taken = {transport.processes[name].device for name in there}
        for number, (device, computes) in enumerate(fleet):
            if device not in taken:
                transport.spawn(device, number, computes)
        until = time.monotonic() + (GREET_S if there else START_S)
        needed = len(there) if there else self.fleet.slices + self.fleet.num_keepers
        hellos: list[m.Hello] = []
        while len(hellos) < needed and (left := until - time.monotonic()) > 0:
            for answer in transport.poll(left):
                if isinstance(answer.event, m.Hello):
                    hellos.append(answer.event)
            if not transport.processes:
                raise RuntimeError(f"no slice came up: {'; '.join(transport.failures[-2:])}")
        if not hellos and not there:
            raise RuntimeError(f"no slice was ready within {START_S:g} s; give the machine fewer slices")
        return hellos

    def _show(self, transport: RayTransport, driver: Driver) -> None:
        if time.monotonic() - self._shown < STATUS_S:
            return
        self._shown = time.monotonic()
        if self._metrics is not None:
            self._metrics.snapshot = Snapshot.of(driver)
        told = {"step": driver.controller.step, "controller": os.getpid(), "incarnation": driver.log.incarnation}
        slices = {p.name: {"pid": p.pid, "device": p.device} for p in transport.processes.values()}
        write_json(self.places.status, told | {"slices": slices})
