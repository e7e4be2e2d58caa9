"""All stages of a run, in order, each in a process of its own; two of them side by side on two cores.

A stage is finished when its parameters are written. What is finished is not done again; what was stopped or
killed goes on from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geminid.config import Recipe, StageConfig
from geminid.train.child import POLL_S, end_with, peak_rss_gib, portable
from geminid.train.progress import Bars, bars
from geminid.train.rundir import RunDir, read_json, write_json

# The encoders and the codec do not need each other: two lanes, one core each. Then everything together.
PHASES: tuple[tuple[tuple[str, ...], ...], ...] = ((("codec", "vision"), ("audio",)), (("joint",),))
CORE_REPEATS = 8  # most documents are about core concepts


def stage_config(recipe: Recipe, name: str) -> StageConfig:
    return recipe.joint.stage if name == "joint" else getattr(recipe, f"{name}_stage")


def run_stages(
    recipe: Recipe,
    run_dir: Path,
    dataset_path: Path,
    origin: float | None = None,
    phases: Sequence[Sequence[Sequence[str]]] = PHASES,
) -> dict[str, Any]:
    """Trains whatever of `recipe` is not finished in `run_dir`.

    origin: on time.time()'s scale, from which `timings.json` counts; default: now.
    ValueError when the directory holds another recipe's run; ChildProcessError when a
    stage's process dies.
    """
    run = RunDir(run_dir)
    run.claim(recipe)
    origin = time.time() if origin is None else origin
    with sole_writer(run_dir / "lock"):
        claim_data(run, dataset_path)
        make_tokenizer(recipe, run, dataset_path)
        for lanes in phases:
            left = [[name for name in lane if not run.params(name).is_file()] for lane in lanes]
            if any(left):
                Phase(recipe, run, dataset_path, left, origin).run()
    return {"stages": read_json(run.timings)}


def claim_data(run: RunDir, dataset_path: Path) -> None:
    """Notes which data set a run reads; ValueError when it was begun with another: its cursor would not fit."""
    file = run.path / "dataset.json"
    begun_with = read_json(file).get("dataset")
    if begun_with is None:
        write_json(file, {"dataset": dataset_path.name})
    elif begun_with != dataset_path.name:
        raise ValueError(
            f"{run.path} was begun with data set {begun_with}, and this is {dataset_path.name} (another version of the"
            " packages or of the build); give another --run-dir or remove it"
        )


def make_tokenizer(recipe: Recipe, run: RunDir, dataset_path: Path) -> None:
    """SentencePiece on a sample of what the documents say, core names as often as they come up."""
    if run.tokenizer.is_file():
        return
    from geminid.corpus.documents import ORDER_QUESTIONS, SYLLABLES
    from geminid.corpus.store import open_dataset
    from geminid.tokens.text import train_tokenizer

    dataset = open_dataset(dataset_path)
    core = set(dataset.concepts)
    sentences = [
        name
        for language in recipe.data.languages
        for concept, name in sorted(dataset.all_names.get(language, {}).items())
        for _ in range(CORE_REPEATS if concept in core else 1)
    ]
    sentences += [*ORDER_QUESTIONS, *SYLLABLES, *(str(digit) for digit in range(10))]
    write_json(run.names, {k: dataset.names[k] for k in recipe.data.languages if dataset.names.get(k)})
    train_tokenizer(sentences, recipe.text.vocab_size, run.tokenizer)


@contextmanager
def sole_writer(file: Path) -> Iterator[None]:
    """Holds a lock that the system gives up with the process; ValueError when another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is training in {file.parent}; wait for it or stop it") from error
        yield


@dataclasses.dataclass
class Phase:
    """Lanes of stages that run side by side.

    A lane that has nothing left to do is empty and keeps its cores: with more cores the others' sums would be
    split in another way, and a resumed run would end with other bits.
    """

    recipe: Recipe
    run_dir: RunDir
    dataset_path: Path
    lanes: list[list[str]]
    origin: float

    def run(self) -> None:
        context = multiprocessing.get_context("spawn")
        messages = context.Queue()
        cores = share_cores(len(self.lanes))
        if self.lanes == [["joint"]] and self.recipe.joint.shards > 1:
            cores = [cores[0][:1]]  # as one of several slices would compute: with more cores the bits differ
        steps = {name: stage_config(self.recipe, name).steps for lane in self.lanes for name in lane}
        with bars(steps) as shown:
            workers = [
                context.Process(
                    target=run_lane,
                    args=(lane, self.recipe, self.run_dir, self.dataset_path, own, messages, os.getpid()),
                    daemon=True,
                )
                for lane, own in zip(self.lanes, cores, strict=True)
                if lane
            ]
            for worker in workers:
                worker.start()
            try:
                self.follow(workers, messages, shown)
            finally:
                for worker in workers:
                    if worker.is_alive():
                        worker.terminate()
                    worker.join()

    def note(self, name: str, timing: dict[str, Any]) -> None:
        timing = {"start_s": timing.pop("started_at") - self.origin, **timing}
        write_json(self.run_dir.timings, {**read_json(self.run_dir.timings), name: timing})

    def follow(self, workers: Sequence[Any], messages: Any, shown: Bars) -> None:
        """Shows progress until every lane has ended."""
        while True:
            running = [worker for worker in workers if worker.is_alive()]
            try:
                while True:
                    kind, name, value = messages.get(timeout=POLL_S)
                    if kind == "step":
                        shown.update(name, value)
                    elif kind == "done":
                        self.note(name, value)
                    else:
                        raise value if isinstance(value, Exception) else RuntimeError(f"stage {name}: {value}")
            except queue.Empty:
                pass
            failed = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if failed:
                raise ChildProcessError(
                    f"a process of {self.lanes} ended with exit code {failed[0]}; the same command resumes"
                )
            if not running:
                return


def share_cores(num_lanes: int) -> list[list[int]]:
    """Cores of this process, dealt out to the lanes; all of them to a single lane."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if num_lanes == 1 or len(cores) < num_lanes:
        return [cores] * num_lanes
    return [cores[lane::num_lanes] for lane in range(num_lanes)]


def run_lane(
    lane: Sequence[str],
    recipe: Recipe,
    run: RunDir,
    dataset_path: Path,
    cores: list[int],
    messages: Any,
    parent: int,
) -> None:
    """In the child: the lane's stages, one after another."""
    end_with(parent)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX starts its threads: the lanes do not disturb each other
    name = lane[0]
    try:
        from geminid.train.compiled import keep_compiled
        from geminid.train.memory import keep_memory
        from geminid.train.stage import STAGES, Workshop

        keep_memory()
        keep_compiled("compiled-one-core" if len(cores) == 1 else "compiled")
        for name in lane:
            started, begun = time.time(), time.monotonic()
            last = [0.0]

            def report(done: int, name: str = name, last: list[float] = last) -> None:
                if time.monotonic() - last[0] > POLL_S:
                    last[0] = time.monotonic()
                    messages.put(("step", name, done))

            STAGES[name](Workshop(recipe, run, dataset_path, report))
            steps = stage_config(recipe, name).steps
            timing = {"started_at": started, "wall_s": time.monotonic() - begun, "steps": steps}
            messages.put(("step", name, steps))
            messages.put(("done", name, {**timing, "peak_rss_gib": peak_rss_gib()}))
    except (ValueError, OSError, RuntimeError) as error:
        messages.put(("failed", name, portable(error)))
