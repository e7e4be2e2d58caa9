"""Slices as threads of one process: the real driver, controller, slices and checkpoints, without Ray."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from geminid.runtime import messages as m
from geminid.runtime.checkpoints import Checkpoints
from geminid.runtime.controller import Controller
from geminid.runtime.driver import Driver, Ending, Log
from geminid.runtime.exchange import PeerFailed
from geminid.runtime.slice import Answer, Slice
from geminid.runtime.timeline import Spans
from geminid.train.shards import BLOCKS, Part

SHARDS = 4


class Adding:
    """Work whose gradients are known: random by (step, shard); the state adds up their mean."""

    names = ("['sum']", "cursors")

    def first(self) -> list[Any]:
        return [jnp.zeros((BLOCKS, 2, 8)), np.zeros((SHARDS, 1), np.int64)]

    def gradient(self, leaves: list[Any], step: int, shard: int) -> Part:
        rng = np.random.default_rng([step, shard])
        scalars = {"loss": np.float32(shard), "weight": np.float32(1 + shard)}
        return Part(rng.standard_normal((BLOCKS, 2, 8)).astype(np.float32), scalars, leaves[-1][shard] + 1)

    def update(self, leaves: list[Any], total: np.ndarray, weight: np.float32, cursors: np.ndarray) -> list[Any]:
        return [leaves[0] + total / weight, cursors]


class Asked:
    """A ticket for an answer from another thread."""

    def __init__(self, peer: str, answer: Future[Any] | None) -> None:
        self.peer, self.answer = peer, answer

    def result(self, timeout_s: float) -> Any:
        if self.answer is None:
            raise PeerFailed(self.peer, "dead")
        try:
            return self.answer.result(min(timeout_s, 60.0))
        except Late:
            raise PeerFailed(self.peer, "silent") from None


class Threads:
    """A transport, and the peers of its slices."""

    def __init__(self, names: str, checkpoints: Path) -> None:
        self.slices = {n: Slice(n, f"on-{n}", Adding(), self, Checkpoints(checkpoints, Adding.names)) for n in names}
        self.workers = {name: ThreadPoolExecutor(1) for name in names}
        self.servers = ThreadPoolExecutor(16)
        self.answers: queue.Queue[Answer] = queue.Queue()

    def send(self, command: m.ToSlice) -> None:
        one = self.slices[command.slice]
        if one.hear(command):
            obey = one.save if isinstance(command, m.Save) else one.obey
            self.workers[command.slice].submit(obey, command).add_done_callback(self._heard)

    def _heard(self, done: Future[Answer | None]) -> None:
        if (answer := done.result()) is not None:
            self.answers.put(answer)

    def poll(self, timeout_s: float) -> Iterable[Answer]:
        try:
            return [self.answers.get(timeout=timeout_s)]
        except queue.Empty:
            return []

    def give_up(self, name: str) -> None:
        raise AssertionError(f"{name} was given up")

    def ask(self, peer: str, what: str, *args: Any) -> Asked:
        return Asked(peer, self.servers.submit(getattr(self.slices[peer], what), *args))

    def drive(self, policy: m.Policy, run: Path, at_commit: Any) -> Ending:
        """To the end of the run; at_commit(step) is called after each commit."""
        log = Log(run / "events.jsonl", run / "curve.jsonl", 1, policy.num_steps)
        spans = Spans(run / "ledger" / "0.json", "session", policy.slices)
        driver = Driver(Controller(policy), self, log, spans, at_commit)
        hellos = tuple(one.hello() for one in self.slices.values())
        ending = driver.run(m.Start(hellos))
        for worker in self.workers.values():
            worker.shutdown()  # having done what it was told
        return ending
