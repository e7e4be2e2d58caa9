"""Tokens a second and MFU of our training step, beside torch.compile, transformers and Levanter, all in one run.

    make setup-peers                                              # environments of the peers, apart from ours
    python benchmarks/train_step.py [--shape small] [--json]

Everyone starts from the same weights, takes the same tokens and makes the same update (`benchmarks/peers/contest.py`):
the losses of the first four steps are compared, and a difference of more than 1e-4 (bfloat16: 1e-2) in the first ends
the run. Each contender is a process of its own, which waits while the others run; they take turns, and `ratio` is the
median over turns of the peer's seconds over ours in the same turn, with the smallest and the largest. A GPU's memory
does not hold all of them: there one ends before the next begins. `processor_s` is the time of all threads of a step,
the steadier measure where others use the cores (waiting threads of OpenMP count in it). A peer tries its settings
first, such as torch.compile or none, and keeps the fastest. `geminid` is the step of the joint stage on rows of text.

MFU = tokens/s x (6 N + 12 L H Dh T) / peak (Chowdhery et al. 2022, appendix B). The peak of a GPU is its data sheet's,
that of a CPU the fastest product of two 2048 x 2048 matrices that any contender reached in this run.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.contest import SHAPES, SQUARE, Shape, Update, first_weights  # noqa: E402

OURS = "geminid"
PEERS = ("torch", "transformers", "levanter")
# what `geminid.train.memory` does, for programs that do not
KEEPING = ":".join(
    f"glibc.malloc.{name}" for name in ("mmap_max=0", "trim_threshold=2147483647", "top_pad=67108864", "arena_max=1")
)
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # of the first loss
PRODUCTS = 3  # of a turn
# dense bfloat16 and, without sparsity, TF32 or float32 as the frameworks use by default, FLOP/s: NVIDIA's data sheets
GPU_PEAKS = {
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
}


@dataclass
class Runner:
    """A contender's process. seconds, processor_s: of a step in each turn; rates of its products, FLOP/s."""

    name: str
    process: subprocess.Popen[str]
    first: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, python: str, spec: Path, environment: dict[str, str]) -> Runner:
        command = [python, "-m", "benchmarks.peers.worker", name, str(spec)]
        log = spec.with_name(f"{name}.log")
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True,
            )  # fmt: skip
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise SystemExit(f"{name} ended before it was ready:\n{log.read_text()[-3000:]}")
        return cls(name, process, json.loads(line))

    def ask(self, what: str, number: int) -> tuple[float, float]:
        """Seconds, and seconds of processor time, of each of `number`."""
        self.process.stdin.write(f"{what} {number}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()} in the middle of a turn")
        seconds, processor_s = json.loads(line)
        return seconds / number, processor_s / number

    def turn(self, steps: int) -> None:
        self.rates.append(2 * SQUARE**3 / self.ask("products", PRODUCTS)[0])
        self.ask("steps", 1)  # the first after a pause finds cold caches
        seconds, processor_s = self.ask("steps", steps)
        self.seconds.append(seconds)
        self.processor_s.append(processor_s)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def python_of(name: str, options: argparse.Namespace) -> str:
    chosen = {OURS: sys.executable, "torch": options.torch_python, "transformers": options.torch_python}
    python = chosen.get(name, options.levanter_python)
    if not Path(python).exists():
        raise SystemExit(f"{name} has no environment at {python}: make setup-peers, or leave it out of --peers")
    return python


def device_of(asked: str) -> tuple[str, str]:
    """("cpu" or "cuda", its name)."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        gpu = ""
    if asked == "cuda" and not gpu:
        raise SystemExit("--device cuda: nvidia-smi finds no GPU here; use --device cpu")
    if gpu and asked != "cpu":
        return "cuda", gpu
    return "cpu", f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"


def peak_of(device: str, dtype: str, runners: list[Runner]) -> tuple[float, str]:
    """FLOP/s, and where they are from."""
    for name, peaks in GPU_PEAKS.items():
        if name in device:
            return peaks[dtype], f"data sheet of {name}"
    best = max(runners, key=lambda runner: statistics.median(runner.rates))
    return statistics.median(best.rates), f"measured: product of two {SQUARE} x {SQUARE} matrices by {best.name}"


def check_equal(runners: list[Runner], dtype: str) -> None:
    """SystemExit where a first loss differs from ours: then the work is not equal."""
    ours = runners[0].first["losses"][0]
    for runner in runners[1:]:
        theirs = runner.first["losses"][0]
        if abs(theirs - ours) > TOLERANCE[dtype]:
            raise SystemExit(f"{runner.name} begins at loss {theirs:.6f}, {OURS} at {ours:.6f}: not equal work")


def row(runner: Runner, ours: Runner, shape: Shape, peak: float) -> dict[str, Any]:
    speeds = [shape.tokens / taken for taken in runner.seconds]
    middle = statistics.median(speeds)
    ratios = [theirs / mine for theirs, mine in zip(runner.seconds, ours.seconds, strict=True)]
    return {
        "tokens_per_s": middle,
        "tokens_per_s_range": [min(speeds), max(speeds)],
        "mfu": middle * shape.flops_per_token / peak,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "processor_s": statistics.median(runner.processor_s),
        "product_flops": statistics.median(runner.rates),
        "loss_step0": runner.first["losses"][0],
        "losses": runner.first["losses"],
        "setting": runner.first["setting"],
        "version": runner.first["version"],
    }


def take_turns(runners: list[Runner], rounds: int, steps: int) -> None:
    for _ in range(rounds):
        for runner in runners:
            runner.turn(steps)
    for runner in runners:
        runner.end()
        middle = statistics.median(runner.seconds)
        print(f"{runner.name}: {middle:.4f} s a step ({runner.first['setting']})", file=sys.stderr)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape, (device, device_name) = SHAPES[options.shape], device_of(options.device)
    np.savez(folder / "weights.npz", **first_weights(shape))
    said = {
        "shape": dataclasses.asdict(shape), "update": dataclasses.asdict(Update()), "device": device,
        "dtype": options.dtype, "weights": str(folder / "weights.npz"),
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(said))
    names = [OURS, *options.peers]
    pythons = {name: python_of(name, options) for name in names}
    environment = {"GLIBC_TUNABLES": KEEPING} if options.keep_memory else {}
    if device == "cuda":
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    runners: list[Runner] = []
    for group in [[name] for name in names] if device == "cuda" else [names]:
        begun = [Runner.start(name, pythons[name], folder / "spec.json", environment) for name in group]
        check_equal([*runners, *begun], options.dtype)
        take_turns(begun, options.rounds, options.steps)
        runners += begun
    peak, source = peak_of(device_name, options.dtype, runners)
    rows = {runner.name: row(runner, runners[0], shape, peak) for runner in runners}
    ours = rows.pop(OURS)
    return {
        **ours,
        "peers": rows,
        "ratio_best_peer": min((peer["ratio"] for peer in rows.values()), default=None),
        "shape": {"name": options.shape, **dataclasses.asdict(shape)},
        "num_params": shape.num_params,
        "flops_per_token": shape.flops_per_token,
        "peak_flops": peak,
        "peak_source": source,
        "dtype": options.dtype,
        "device": device_name,
        "keep_memory": options.keep_memory,
        "rounds": options.rounds,
        "steps": options.steps,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def table(result: dict[str, Any]) -> str:
    shape = result["shape"]
    lines = [
        f"{result['num_params'] / 1e6:.1f}M parameters, batch {shape['batch']} x {shape['length']}, {result['dtype']},"
        f" {result['device']}, {result['date']}",
        f"peak {result['peak_flops'] / 1e9:,.0f} GFLOP/s ({result['peak_source']})\n",
        "| | setting | tokens/s (range) | MFU | ours / theirs (range) | processor s a step | first loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in [(OURS, result), *result["peers"].items()]:
        low, high = one["tokens_per_s_range"]
        least, most = one["ratio_range"]
        ratio = "" if name == OURS else f"{one['ratio']:.2f} ({least:.2f} to {most:.2f})"
        lines.append(
            f"| {name} ({one['version']}) | {one['setting']} | {one['tokens_per_s']:,.0f} ({low:,.0f} to {high:,.0f}) |"
            f" {one['mfu']:.1%} | {ratio} | {one['processor_s']:.3f} | {one['loss_step0']:.6f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn that are timed; one more comes before")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument(
        "--keep-memory", action="store_true", help="the peers' C library keeps freed memory, as ours does"
    )
    parser.add_argument("--torch-python", default=str(ROOT / ".venv-peers/bin/python"))
    parser.add_argument("--levanter-python", default=str(ROOT / ".venv-levanter/bin/python"))
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options, Path(folder))
    if not options.json:
        print(table(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
