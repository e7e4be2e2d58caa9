"""From the command line to a run of slices: pretraining here, then Ray, the controller, and its progress."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray

from geminid.config import Recipe
from geminid.runtime.cluster import Spec, end_all, start
from geminid.runtime.conductor import Conductor, Places, namespace_of
from geminid.runtime.requests import ALWAYS, HERE, Checking, Cluster, Fleet
from geminid.runtime.timeline import totals
from geminid.runtime.work import Job
from geminid.train import child
from geminid.train.progress import bars
from geminid.train.rundir import RunDir, read_json, write_json
from geminid.train.stages import PHASES, run_stages, sole_writer

POLL_S = 0.25
FIRST_PHASES = PHASES[:-1]  # the encoders and the codec, in this process's lanes


def train_on_slices(
    recipe: Recipe, run_dir: Path, dataset_path: Path, fleet: Fleet, cluster: Cluster = HERE
) -> dict[str, Any]:
    """Trains all stages of a recipe, the joint one on slices. ValueError where it has fewer shards than slices."""
    check(recipe, fleet)
    run = RunDir(run_dir)
    run_stages(recipe, run_dir, dataset_path, phases=FIRST_PHASES)
    if run.params("joint").is_file():
        return {"stages": read_json(run.timings)}
    with sole_writer(run_dir / "lock"):
        child.call(write_codes, recipe, run_dir, dataset_path)
        begun = time.monotonic()
        result = conduct(recipe, run, dataset_path, fleet, cluster)
        timing = {"start_s": 0.0, "wall_s": time.monotonic() - begun, "steps": recipe.joint.stage.steps}
        earlier = read_json(run.timings)
        last = max((t["start_s"] + t["wall_s"] for t in earlier.values()), default=0.0)
        write_json(run.timings, {**earlier, "joint": {**timing, "start_s": last, "peak_rss_gib": child.peak_rss_gib()}})
    return {"stages": read_json(run.timings), **result, **totals(Places(run).ledgers)}


def check(recipe: Recipe, fleet: Fleet) -> None:
    """ValueError when there are more slices than there is work for."""
    shards = recipe.joint.shards
    if fleet.slices > shards:
        raise ValueError(
            f"recipe '{recipe.name}' shares a step in {shards} logical shards, which is not enough for {fleet.slices}"
            f" slices; --set joint.shards={fleet.slices * 2} (a run's bits depend on it)"
        )


def write_codes(recipe: Recipe, run_dir: Path, dataset_path: Path) -> None:
    """The codec's codes of all pictures, once for all slices."""
    from geminid.train.stage import Workshop, encode_pictures

    encode_pictures(Workshop(recipe, RunDir(run_dir), dataset_path, lambda done: None))


def conduct(
    recipe: Recipe,
    run: RunDir,
    dataset_path: Path,
    fleet: Fleet,
    cluster: Cluster = HERE,
    checking: Checking = ALWAYS,
    stop_at: int | None = None,
    beside: Callable[[str], AbstractContextManager[Any]] = lambda namespace: nullcontext(),
) -> dict[str, Any]:
    """The joint stage on slices, to its end or to `stop_at` steps. beside(namespace): what goes on meanwhile.

    ChildProcessError says why a run cannot go on.
    """
    places, namespace = Places(run), namespace_of(run.path)
    job = Job(recipe, run.path.absolute(), dataset_path.absolute())
    spec = Spec(
        job, places.checkpoints.absolute(), not cluster.resources, checking, cluster.resources, cluster.processes
    )
    with redirect_stdout(sys.stderr):  # Ray prints there of what its processes died; stdout is the answer's
        start(cluster.ray_address, namespace)
        try:
            actor: Any = ray.remote(Conductor)
            actor = actor.options(
                num_cpus=0,
                name="conductor",
                namespace=namespace,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=2,
            )
            handle = actor.remote(spec, fleet, cluster, uuid.uuid4().hex, stop_at)
            ended = handle.run.remote()
            with beside(namespace), bars({"joint": recipe.joint.stage.steps}) as shown:
                while not ray.wait([ended], timeout=POLL_S)[0]:
                    shown.update("joint", read_json(places.status).get("step", 0))
                return ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            raise ChildProcessError(str(error.cause)) from error
        finally:
            end_all()
            ray.shutdown()
