"""`geminid plan compile`: the real step of a recipe, compiled for TPUs that nobody owns yet, and what it would cost.

The compiler is libtpu's, in an environment of its own (`make setup-tpu-plan`), in a process of its own
(`geminid.plan.ahead`). Here its answer is read: memory, the scheduled program played on a model of the chip
(`geminid.plan.schedule`), a table of what moves.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geminid.config import Recipe
from geminid.plan import chips, hlo, mesh, torus
from geminid.plan.ahead import MISTAKE
from geminid.plan.checks import has_place
from geminid.plan.estimate import Estimate, Stack, estimate, in_place, is_fine, meshes, of_recipe
from geminid.plan.links import Machine
from geminid.plan.requests import CompileRequest
from geminid.plan.schedule import MEGASCALE, MXU_SHARE, Played, play
from geminid.plan.torus import Slice
from geminid.tokens.ids import num_ids

MOST_SLICES = 64
ROOM = 0.87  # of a chip's memory that a modelled step may take: the program and what the compiler reserves come on top
ENVIRONMENT = ".venv-tpu-plan"
OUT_OF_MEMORY = re.compile(
    r"(?:Used|HLO temporaries) \(?([\d.]+)([KMGT]?)\)?(?: of | exceeds available HBM \()([\d.]+)([KMGT]?)(?: hbm|\))"
)
MOST_TIMEOUT_S = 1e6
MESH_AXES = ("fsdp", "context", "tensor")  # within a slice
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MODEL = (
    f"matrix products at {MXU_SHARE:.0%} of the peak or main-memory traffic, whichever is longer; collectives on rings"
    " of the torus by bytes / bandwidth and 1 us a hop; transfers between slices at 25 GB/s a host; asynchronous ones"
    " run beside compute until their done; attention meets the blocks of keys of documents that fill their rows"
)
# asynchronous collectives, fused with the compute that they run beside (names as in MaxText's TPU configurations); and
# against long compilations: loops as they are, not with a trip before them, and the code of equal instructions once
OPTIONS = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_collective_pipeliner": "false",
    "xla_jf_hlo_deduplication": "true",
    "xla_tpu_enable_deduplicated_calls": "true",
}


@dataclass(frozen=True)
class Target:
    """What is compiled for."""

    torus: Slice
    slices: int

    @property
    def name(self) -> str:
        return f"{self.torus.chip.name}:{self.torus.name}"

    @property
    def num_chips(self) -> int:
        return self.torus.num_chips * self.slices


def target_of(request: CompileRequest) -> Target:
    """ValueError for a topology that does not exist."""
    name, colon, shape = request.topology.partition(":")
    if not colon or not name or not shape:
        raise ValueError(f"--topology '{request.topology}' is not of the form CHIP:SHAPE, such as v4:16x16x16")
    found = torus.parse(chips.get(name), shape)
    if found.twisted:
        raise ValueError(f"--topology '{request.topology}' is twisted: its axes do not close by themselves; untwist it")
    if not 1 <= request.slices <= MOST_SLICES:
        raise ValueError(f"--slices is {request.slices}; it must be 1 to {MOST_SLICES}")
    return Target(found, request.slices)


def plan_compile(request: CompileRequest, recipe: Recipe) -> dict[str, Any]:
    """The answer to a request, as `--json` prints it; ValueError for what cannot be."""
    has_place(request.page)
    target = target_of(request)
    if not 0 < request.timeout_s <= MOST_TIMEOUT_S:
        raise ValueError(f"--timeout-s is {request.timeout_s:g}; it must be above 0 and at most {MOST_TIMEOUT_S:g}")
    if request.keep is not None and request.keep.exists() and not request.keep.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file; --keep needs a directory", str(request.keep))
    if request.top < 1:
        raise ValueError(f"--top is {request.top}; it must be 1 or more")
    ranked = search(recipe, target)
    if not ranked and (request.search or not request.mesh):
        rows, heads = recipe.joint.stage.batch, recipe.decoder.num_heads
        raise ValueError(
            f"no mesh of {target.num_chips} chips suits {rows} rows and {heads} heads of {recipe.name}; change"
            " joint.stage.batch, or choose a smaller topology"
        )
    if request.search:
        return {"recipe": recipe.name, "topology": target.name, "slices": target.slices, "num_chips": target.num_chips,
                "meshes": [_row(each) for each in ranked[: request.top]]}  # fmt: skip
    given = mesh.parse_mesh(request.mesh) if request.mesh else ranked[0].mesh
    if unknown := set(given) - set(MESH_AXES):
        raise ValueError(
            f"--mesh {min(unknown)} is no axis of a slice: {', '.join(MESH_AXES)}; --slices has their number"
        )
    sizes = {"slice": target.slices, **dict.fromkeys(MESH_AXES, 1), **given}
    product = int(np.prod(list(sizes.values())))
    if product != target.num_chips:
        shown = " x ".join(map(str, (target.slices, *given.values())))
        raise ValueError(
            f"the mesh has {shown} = {product} places; {target.slices} x {target.name} has {target.num_chips} chips:"
            " make them equal"
        )
    parts = _divisors(rows_a_place(recipe, sizes))
    if request.accumulate is not None and request.accumulate not in parts:
        raise ValueError(f"--accumulate is {request.accumulate}; with this mesh it must be one of {parts}")
    accumulate = request.accumulate or next(
        (each.accumulate for each in ranked if {"slice": target.slices, **each.mesh} == sizes), parts[-1]
    )
    shared = _with_shards(recipe)
    with tempfile.TemporaryDirectory(prefix="geminid-") as folder:
        out = Path(folder) if request.keep is None else request.keep
        out.mkdir(parents=True, exist_ok=True)
        compiled = run_compiler(shared, target, sizes, accumulate, out, request.timeout_s)
        if "out_of_memory" in compiled:
            return _head(shared, target, sizes, accumulate) | {"fits": False, **compiled}
        text = (out / "program.txt").read_text()
    return analyse(text, compiled, shared, target, request.page)


def search(recipe: Recipe, target: Target) -> list[Estimate]:
    """Meshes by modelled step time, those that compile and fit first; where it is alike, rows stay whole, and batches
    too."""
    stack = of_recipe(recipe, num_ids(recipe))
    positions = recipe.joint.stage.batch * recipe.joint.row_length
    found = [
        estimate(stack, positions, in_place(target.torus, target.slices, sizes), recipe.decoder.remat, parts)
        for sizes in meshes(target.torus, target.slices, recipe)
        for rows in (rows_a_place(recipe, {"slice": target.slices, **sizes}),)
        for parts in _divisors(rows)
    ]
    room = ROOM * target.torus.chip.hbm_bytes
    return sorted(
        found,
        key=lambda each: (
            target.slices > 1 and is_fine(each.mesh, recipe),
            each.hbm_bytes > room,
            float(f"{each.step_s:.2g}"),
            each.mesh["context"],
            each.accumulate,
        ),
    )


def rows_a_place(recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Rows, or logical shards of several, of each place of slice x fsdp. ValueError when it gets no whole number."""
    places, rows = sizes["slice"] * sizes.get("fsdp", 1), _with_shards(recipe).joint.shards
    if rows % places:
        whole = rows == recipe.joint.stage.batch
        what, field = ("rows", "joint.stage.batch") if whole else ("logical shards", "joint.shards")
        raise ValueError(
            f"{rows} {what} cannot be shared by slice x fsdp = {places} places; change {field} or the mesh"
        )
    return rows // places


def _divisors(count: int) -> list[int]:
    small = [each for each in range(1, math.isqrt(count) + 1) if count % each == 0]
    return sorted({*small, *(count // each for each in small)})


def _row(each: Estimate) -> dict[str, Any]:
    return {**asdict(each), "exposed_comm_fraction": each.exposed_s / each.step_s}


def _with_shards(recipe: Recipe) -> Recipe:
    """A recipe whose batch has a logical shard for each row, unless it says how many it has."""
    if recipe.joint.shards > 1:
        return recipe
    return dataclasses.replace(recipe, joint=dataclasses.replace(recipe.joint, shards=recipe.joint.stage.batch))


# --- the compiler's process ---


def environment() -> Path:
    """Python of the environment that holds libtpu; FileNotFoundError says how to make it."""
    folder = os.environ.get("GEMINID_TPU_PLAN") or Path(sys.prefix).with_name(ENVIRONMENT)
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        raise ValueError("plan compile needs the TPU compiler in an environment of its own; run: make setup-tpu-plan")
    return python


def run_compiler(
    recipe: Recipe, target: Target, sizes: Mapping[str, int], accumulate: int, out: Path, timeout_s: float
) -> dict[str, Any]:
    """Leaves program.txt in `out` and returns what the compiler says; {"out_of_memory": ...} when it finds no room."""
    python, asked = environment(), out / "request.json"
    request = {
        "recipe": asdict(recipe), "topology": target.name, "slices": target.slices, "mesh": dict(sizes),
        "accumulate": accumulate, "options": OPTIONS,
    }  # fmt: skip
    asked.write_text(json.dumps(request))
    quiet = {
        "JAX_PLATFORMS": "cpu",  # no TPU is looked for
        "TPU_SKIP_MDS_QUERY": "1",  # nor a cloud's metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilations at once; there is no TPU to be shared
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v4-8",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [str(python), "-m", "geminid.plan.ahead", str(asked), str(out)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the compiler was not done after --timeout-s {timeout_s:g}; give it longer, or a smaller topology"
        ) from None
    if done.returncode == 0:
        return json.loads((out / "compiled.json").read_text())
    full = OUT_OF_MEMORY.search(done.stderr)
    if full:
        used, room = (float(full[i]) * UNITS[full[i + 1]] for i in (1, 3))
        return {"hbm_used_bytes": used, "hbm_bytes": room, "hbm_free_bytes": room - used, "out_of_memory": full[0]}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == MISTAKE:
        raise ValueError(lines[-1].removeprefix("geminid: "))
    end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = f": {lines[-1][:300]}" if lines else ""
    raise ChildProcessError(f"the compiler's process ended with {end}{last}; try another --mesh or --accumulate")


# --- what its answer means ---


def _head(recipe: Recipe, target: Target, sizes: Mapping[str, int], accumulate: int) -> dict[str, Any]:
    positions = recipe.joint.stage.batch * recipe.joint.row_length
    return {
        "recipe": recipe.name,
        "topology": target.name,
        "slices": target.slices,
        "num_chips": target.num_chips,
        "mesh": dict(sizes),
        "shards": recipe.joint.shards,
        "accumulate": accumulate,
        "positions_per_step": positions,
    }


def analyse(
    text: str, compiled: Mapping[str, Any], recipe: Recipe, target: Target, page: Path | None = None
) -> dict[str, Any]:
    """text: the scheduled program; compiled: as `geminid.plan.ahead` writes it."""
    chip, module = target.torus.chip, hlo.parse(text)
    inside = {name: size for name, size in compiled["mesh"].items() if name != "slice"}
    machine = Machine(
        chip, inside, np.array(compiled["places"])[:, : len(target.torus.shape)], target.torus.shape,
        target.torus.wraps, target.slices,
    )  # fmt: skip
    stack = of_recipe(recipe, num_ids(recipe))
    played = play(module, machine, key_blocks(stack, recipe.decoder.attention_block))
    used = compiled["peak_bytes"] + compiled["program_bytes"]  # arguments are in the peak
    head = _head(recipe, target, compiled["mesh"], compiled["accumulate"])
    useful = stack.flops_a_position() * head["positions_per_step"]
    answer = head | {
        "lower_s": compiled["lower_s"],
        "compile_s": compiled["compile_s"],
        "fits": used <= chip.hbm_bytes,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_used_bytes": used,
        "hbm_free_bytes": chip.hbm_bytes - used,
        "flops": played.flops * target.num_chips,
        "model_flops": useful,
        "step_time_s": played.step_s,
        "compute_s": played.compute_s,
        "exposed_comm_s": played.exposed_s,
        "exposed_comm_fraction": played.exposed_s / played.step_s,
        "memory_wait_s": played.memory_wait_s,
        "mfu": useful / (played.step_s * target.num_chips * chip.peak_flops),
        "positions_per_s": head["positions_per_step"] / played.step_s,
        "megascale_transfers": num_megascale(module),
        "collectives": collectives(played),
        "loops_by_data": len(played.unknown_loops),
        "model": MODEL,
    }
    if page is not None:
        from geminid.plan.compile_page import write_page

        write_page(page, answer, played)
    return answer


def key_blocks(stack: Stack, block: int) -> int:
    """Blocks of keys that a block of queries meets on average: trips of attention's loops, which follow the data."""
    return max(1, round(sum(keys / block + 0.5 for keys in stack.keys) / len(stack.keys)))


def num_megascale(module: hlo.Module) -> int:
    """Instructions that send to other slices, each counted once however often it runs."""
    return sum(
        each.opcode == "send" and MEGASCALE in each.rest
        for computation in module.computations.values() for each in computation.instructions
    )  # fmt: skip


def collectives(played: Played) -> list[dict[str, Any]]:
    """What moves in a step, by kind, mesh axes and whether it is asynchronous, longest first.

    bytes: that a chip's group moves in a step, counted as `geminid.plan.collectives` does; overlaps: seconds of compute
    scheduled between start and done.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for each in played.transfers.values():
        key = each.kind, each.axes, each.is_async
        row = found.setdefault(
            key,
            {"kind": each.kind, "axes": list(each.axes), "asynchronous": each.is_async, "count": 0.0, "bytes": 0.0,
             "seconds": 0.0, "exposed_s": 0.0, "overlaps": {}},
        )  # fmt: skip
        row["count"] += each.count
        row["bytes"] += each.count * each.num_bytes
        row["seconds"] += each.count * each.seconds
        row["exposed_s"] += each.exposed_s
        for name, beside_s in each.overlaps.items():
            row["overlaps"][name] = row["overlaps"].get(name, 0.0) + beside_s
    for row in found.values():
        row["overlaps"] = dict(sorted(row["overlaps"].items(), key=lambda pair: -pair[1])[:4])
    return sorted(found.values(), key=lambda row: -row["seconds"])


def tables(answer: Mapping[str, Any]) -> Sequence[Any]:
    """The answer for people: rich tables."""
    from rich.table import Table

    if "meshes" in answer:
        table = Table(
            "mesh", "parts", "step s", "MFU", "exposed", "HBM GB", title=f"{answer['recipe']} on {answer['topology']}"
        )
        for row in answer["meshes"]:
            shown = " ".join(f"{name}={size}" for name, size in row["mesh"].items())
            table.add_row(
                shown, str(row["accumulate"]), f"{row['step_s']:.3g}", f"{row['mfu']:.1%}",
                f"{row['exposed_comm_fraction']:.1%}", f"{row['hbm_bytes'] / 1e9:.1f}",
            )  # fmt: skip
        return [table]
    plain = Table(title=f"{answer['recipe']} on {answer['slices']} x {answer['topology']}", show_header=False)
    for key, value in answer.items():
        if key != "collectives":
            plain.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    moves = Table("collective", "axes", "async", "times", "GB", "s", "exposed s", "beside it")
    for row in answer.get("collectives", ()):
        moves.add_row(
            row["kind"], ", ".join(row["axes"]), "yes" if row["asynchronous"] else "no", f"{row['count']:,.0f}",
            f"{row['bytes'] / 1e9:,.2f}", f"{row['seconds']:.3g}", f"{row['exposed_s']:.3g}",
            ", ".join(row["overlaps"]),
        )  # fmt: skip
    return [plain, moves]
