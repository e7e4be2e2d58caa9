"""Peak memory of a multimodal training step as the context grows, for each policy of rematerialisation.

    python benchmarks/context_memory.py [--lengths 8192 16384 32768] [--policies full ...] [--json]

Each (length, policy) is compiled and run in a process of its own: XLA's plan of the step's memory, and what the system
saw the process take at most beyond what it had before the step. One row of packed documents of a quarter of the row
each, a picture for every 512 positions and a clip for every 1024; the encoders learn too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

NUM_IDS = 4096
LENGTHS = (8192, 16_384, 32_768)
POLICIES = ("full", "attended", "dots", "none")
MIB = 1 << 20


def recipe_of(length: int, policy: str) -> Any:
    from geminid import recipes
    from geminid.config import DecoderConfig, JointConfig, MixtureConfig, StageConfig

    decoder = DecoderConfig(
        num_layers=6, width=256, num_heads=8, num_kv_heads=1, head_dim=32, mlp_width=768, window=1024,
        local_per_global=5, attention="blockwise", scan_layers=True, remat=policy, smear=True,
    )  # fmt: skip
    joint = JointConfig(
        stage=StageConfig(steps=10, batch=1), mixture=MixtureConfig(draw=0), row_length=length,
        max_pictures=length // 512, max_clips=length // 1024, answer_share=1.0, encoder_rate=0.1, logit_chunk=1024,
    )  # fmt: skip
    return dataclasses.replace(recipes.demo(), decoder=decoder, joint=joint)


def batch_of(recipe: Any) -> dict[str, np.ndarray]:
    """Arrays of a full batch: four documents a row, every slot used, loss on every position but the first."""
    from geminid.batches.packing import Shape

    shape, rng = Shape.of(recipe), np.random.default_rng(0)
    size, part = (1, shape.length), shape.length // 4
    soft = shape.pictures * shape.soft_per_picture + shape.clips * shape.soft_per_clip
    sources = np.zeros(size, np.int32)
    sources[0, 1 : 1 + soft] = 1 + np.arange(soft)
    return {
        "ids": rng.integers(1, NUM_IDS, size).astype(np.int32),
        "sources": sources,
        "places": np.zeros(size, np.int32),
        "segments": (1 + np.arange(shape.length) // part).astype(np.int32)[None],
        "positions": (np.arange(shape.length) % part).astype(np.int32)[None],
        "weights": np.ones(size, np.float32),
        "answers": np.append(np.arange(1, shape.length), 0).astype(np.int32),
        "pictures": rng.integers(0, 256, (shape.pictures, shape.picture_size, shape.picture_size, 3), np.uint8),
        "mels": rng.standard_normal((shape.clips, shape.num_frames, shape.num_mels)).astype(np.float32),
        "frames": np.full(shape.clips, shape.num_frames, np.int32),
    }


def measure(length: int, policy: str, take: bool) -> dict[str, Any]:
    """Of one step in this process."""
    import jax

    from geminid.train import joint

    recipe = recipe_of(length, policy)
    task = joint.joint_task(recipe, joint.make_model(recipe, NUM_IDS))
    batch, key = batch_of(recipe), jax.random.key(0)
    begin = time.perf_counter()
    compiled = task.step.lower(task.state, batch, key).compile()
    plan = compiled.memory_analysis()
    row = {
        "length": length,
        "policy": policy,
        "temporary_bytes": plan.temp_size_in_bytes,
        "arguments_bytes": plan.argument_size_in_bytes,
        "compile_s": time.perf_counter() - begin,
    }
    if take:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        _, metrics = compiled(task.state, batch, key)
        row |= {"loss": float(metrics["loss"]), "step_s": time.perf_counter() - begin}
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row |= {"rss_bytes": after * 1024, "rss_grown_bytes": (after - before) * 1024}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--plan-only", action="store_true", help="compile, but take no step")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    parser.add_argument("--one", nargs=2, metavar=("LENGTH", "POLICY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(int(asked.one[0]), asked.one[1], not asked.plan_only)))
        return
    rows = []
    for policy in asked.policies:
        for length in asked.lengths:
            command = [sys.executable, __file__, "--one", str(length), policy, *["--plan-only"] * asked.plan_only]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{length} positions, {policy}: {done.stderr[-2000:]}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            if not asked.json:
                shown = {name: f"{rows[-1][name] / MIB:,.0f} MiB" for name in rows[-1] if name.endswith("bytes")}
                print(length, policy, shown, flush=True)
    if asked.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
