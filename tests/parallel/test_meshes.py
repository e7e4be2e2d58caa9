"""Every mesh gives the single device's loss and gradients; its program is split; each device holds its part alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import free_port

GQA = {"num_kv_heads": 2, "attention": "dense", "scan_layers": False, "remat": "none"}
CASES: dict[str, dict[str, Any]] = {
    "fsdp 8": {"mesh": {"fsdp": 8}},
    "context 8": {"mesh": {"context": 8}},
    "tensor 8": {"mesh": {"tensor": 8}},
    "slice 2, fsdp 4": {"mesh": {"slice": 2, "fsdp": 4}},
    "fsdp 2, tensor 4": {"mesh": {"fsdp": 2, "tensor": 4}},
    "fsdp 2, context 4": {"mesh": {"fsdp": 2, "context": 4}},
    "slice 2, fsdp 2, tensor 2": {"mesh": {"slice": 2, "fsdp": 2, "tensor": 2}},
    "slice 2, fsdp 2, tensor 2, in two parts, offloading": {
        "mesh": {"slice": 2, "fsdp": 2, "tensor": 2},
        "accumulate": 2,
        "remat": "offload",
    },
    "slice 2, context 2, tensor 2": {"mesh": {"slice": 2, "context": 2, "tensor": 2}},
    "fsdp 2, context 2, tensor 2, and the update": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}, "update": True},
    "two key-value heads, dense: context 2, tensor 4": {"mesh": {"context": 2, "tensor": 4}, "decoder": GQA},
}
SHORT = (  # the others are many minutes of compiling
    "slice 2, fsdp 2, tensor 2, in two parts, offloading",
    "fsdp 2, context 2, tensor 2, and the update",
)
MARKED = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in CASES]
ROOT = Path(__file__).parents[2]


def start(cases: list[dict[str, Any]], devices: int, **environment: str) -> subprocess.Popen[str]:
    texts = [json.dumps({"decoder": {}, "update": False, "accumulate": 1, "remat": None} | case) for case in cases]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")}
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.parallel.on_meshes", *texts],
        cwd=ROOT, env=inherited | own | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """Figures of each case, and what XLA wrote to standard error."""
    try:
        out, log = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, log[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], log


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Cases in one process with eight devices, by name, and its "log": all that are asked for, and the short ones."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    cases = {name: case for name, case in CASES.items() if name in asked or name in SHORT}
    lines, log = outcome(start(list(cases.values()), 8))
    return dict(zip(cases, lines, strict=True)) | {"log": log}


@pytest.mark.parametrize("name", MARKED)
def test_loss_and_every_gradient_are_the_single_devices(outcomes, name):
    equal(outcomes[name])


def equal(got: dict[str, Any]) -> None:
    assert got["loss"][0] == pytest.approx(got["loss"][1], rel=1e-5)
    for leaf, (error, largest) in got["errors"].items():
        assert largest > 0, leaf  # every parameter has a part in the loss
        assert error <= 1e-5 * largest, leaf


@pytest.mark.parametrize("name", MARKED)
def test_the_program_communicates_over_every_axis(outcomes, name):
    """An equal loss shows nothing of whether the work was shared."""
    mesh, kinds = CASES[name]["mesh"], outcomes[name]["collectives"]

    def over(axis: str, *wanted: str) -> bool:
        return any(kind in wanted and axis in axes.split("+") for kind, axes in map(str.split, kinds))

    for axis in mesh:
        assert over(axis, "all-reduce", "reduce-scatter"), axis  # sums of gradients, or of products cut inside
        if axis != "slice":
            assert over(axis, "all-gather"), axis  # weights; keys and values; ids
        if axis == "tensor":
            assert over(axis, "collective-permute"), axis  # positions before a block and after it
    if "slice" in mesh:
        assert not over("slice", "all-gather", "all-to-all"), kinds  # each slice has the state and its rows' inputs


@pytest.mark.parametrize("name", MARKED)
def test_a_device_holds_its_part_of_the_weights(outcomes, name):
    mesh = CASES[name]["mesh"]
    parts = math.prod(size for axis, size in mesh.items() if axis != "slice")
    assert outcomes[name]["shares"] == {"q": parts, "gate": parts}


def test_the_update_is_the_single_devices(outcomes):
    updated(outcomes["fsdp 2, context 2, tensor 2, and the update"])


def updated(got: dict[str, Any]) -> None:
    assert got["moved"] > 1e-4  # every parameter has learned
    assert got["update"] <= 1e-5


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_device():
    """Joined by jax.distributed; the sum of gradients goes from one to the other."""
    port = str(free_port())
    layer = {"num_layers": 1, "local_per_global": 0}
    case = {"mesh": {"slice": 2, "context": 2}, "decoder": layer}
    processes = [start([case], 2, PROCESS=str(k), PORT=port) for k in range(2)]
    with ThreadPoolExecutor() as pool:
        for lines, _ in pool.map(outcome, processes):
            equal(lines[0])
            assert any(kind.startswith("all-reduce") and "slice" in kind for kind in lines[0]["collectives"])


def test_one_file_names_partition_specs():
    naming = [path for path in (ROOT / "geminid").rglob("*.py") if "PartitionSpec" in path.read_text()]
    assert [path.relative_to(ROOT).as_posix() for path in naming] == ["geminid/parallel/sharding.py"]


def test_the_partitioner_never_gave_up(outcomes):
    """It warns where it can only gather an array whole to lay it anew."""
    assert "Involuntary full rematerialization" not in outcomes["log"]
