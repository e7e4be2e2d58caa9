"""The process of one contender: it makes its step, says so, and takes steps when it is asked to.

    python -m benchmarks.peers.worker NAME SPEC.json

In: a line "steps N" or "products N". Out: a JSON object a line, first {"losses", "setting", "version"}; then for each
line in [seconds, seconds of processor time of all its threads]. SPEC: {"shape", "update": fields of `contest.Shape` and
`contest.Update`, "device": "cpu" | "cuda", "dtype", "weights": an .npz of `contest.first_weights`}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.contest import FIRST_LOSSES, Shape, Update, batches

CONTENDERS = {
    "geminid": "benchmarks.peers.geminid_step",
    "torch": "benchmarks.peers.torch_gpt",
    "transformers": "benchmarks.peers.transformers_qwen3",
    "levanter": "benchmarks.peers.levanter_qwen3",
}


@dataclass(frozen=True)
class Spec:
    """What a contender is to make, and of what."""

    shape: Shape
    update: Update
    device: str
    dtype: str
    weights: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: str) -> Spec:
        with open(path) as file:
            said = json.load(file)
        weights = dict(np.load(said["weights"]))
        return cls(Shape(**said["shape"]), Update(**said["update"]), said["device"], said["dtype"], weights)


@dataclass(frozen=True)
class Contender:
    """What each file here makes.

    step(ids int32 [B T]) -> the loss before the update, perhaps not computed yet; float() of it waits, for the update
    too after `wait`. products(n) multiplies two [SQUARE SQUARE] matrices n times and waits. setting: how it was made
    fast.
    """

    step: Callable[[np.ndarray], Any]
    wait: Callable[[], None]
    products: Callable[[int], None]
    setting: str
    version: str


def fastest(makers: dict[str, Callable[[], Contender]], ids: np.ndarray, steps: int = 5) -> str:
    """The name of the setting with the fastest step, each tried alone; one that does not run is no candidate."""

    def seconds(make: Callable[[], Contender]) -> float:
        made = make()
        for i in range(2):
            float(made.step(ids[i % len(ids)]))
        made.wait()
        taken = []
        for i in range(steps):
            begin = time.perf_counter()
            made.step(ids[i % len(ids)])
            made.wait()
            taken.append(time.perf_counter() - begin)
        return min(taken)

    tried: dict[str, float] = {}
    for name, make in makers.items():
        try:
            tried[name] = seconds(make)
        except RuntimeError as error:  # a GPU's memory is full, or it has no such kernel
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
        gc.collect()
    if not tried:
        raise SystemExit(f"none of its settings runs: {', '.join(makers)}")
    print({name: f"{taken:.3f} s" for name, taken in tried.items()}, file=sys.stderr)
    return min(tried, key=lambda name: tried[name])


def main() -> None:
    name, path = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = Spec.read(path)
    ids = batches(spec.shape)
    contender = importlib.import_module(CONTENDERS[name]).make(spec, ids)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    losses = [float(contender.step(ids[i])) for i in range(FIRST_LOSSES)]
    contender.wait()
    answer({"losses": losses, "setting": contender.setting, "version": contender.version})
    done = FIRST_LOSSES
    for line in sys.stdin:
        what, number = line.split()
        begin, used = time.perf_counter(), time.process_time()
        if what == "products":
            contender.products(int(number))
        else:
            for _ in range(int(number)):
                contender.step(ids[done % len(ids)])
                done += 1
            contender.wait()
        answer([time.perf_counter() - begin, time.process_time() - used])


if __name__ == "__main__":
    main()
