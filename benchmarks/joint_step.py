"""How long one step of the joint stage takes, and what each choice in it costs: ratios within one run.

    make bench        prints a table, and one JSON object as its last line

Variants take turns, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import track

from geminid import recipes
from geminid.batches.packing import Shape
from geminid.config import Recipe
from geminid.overrides import override
from geminid.train import joint

ROUNDS = 7
NUM_IDS = 4200  # of the demo
VARIANTS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "logits of every position": ("joint.answer_share=1.0",),
    "rows twice as long, half as many": ("joint.row_length=256", "joint.stage.batch=8"),
    "encoders learn too": ("joint.encoder_rate=0.1",),
    "multi-query attention": ("decoder.num_kv_heads=1",),
}


def batch_of(recipe: Recipe) -> dict[str, np.ndarray]:
    """Arrays of a full batch: every slot used, four documents a row."""
    shape, rng = Shape.of(recipe), np.random.default_rng(0)
    size = (shape.rows, shape.length)
    part = shape.length // 4
    positions = np.broadcast_to(np.arange(shape.length) % part, size).astype(np.int32)
    soft = shape.pictures * shape.soft_per_picture + shape.clips * shape.soft_per_clip
    sources = np.zeros(size, np.int32)
    sources.reshape(-1)[:soft] = 1 + np.arange(soft)
    answers = np.sort(rng.choice(np.arange(1, positions.size), shape.answers - 1, replace=False))
    return {
        "ids": rng.integers(1, NUM_IDS, size).astype(np.int32),
        "sources": sources,
        "places": np.zeros(size, np.int32),
        "segments": np.broadcast_to(1 + np.arange(shape.length) // part, size).astype(np.int32),
        "positions": positions,
        "weights": np.ones(size, np.float32),
        "answers": np.append(answers, 0).astype(np.int32),
        "pictures": rng.integers(0, 256, (shape.pictures, shape.picture_size, shape.picture_size, 3), np.uint8),
        "mels": rng.standard_normal((shape.clips, shape.num_frames, shape.num_mels)).astype(np.float32),
        "frames": np.full(shape.clips, shape.num_frames, np.int32),
    }


def stepper(changes: tuple[str, ...]) -> Callable[[], float]:
    """Compiles the step of a variant; each call takes one more step and returns its seconds."""
    recipe = override(recipes.get("demo"), changes)
    task = joint.joint_task(recipe, joint.make_model(recipe, NUM_IDS))
    batch, key = batch_of(recipe), jax.random.key(0)
    state: Any = task.state

    def take() -> float:
        nonlocal state
        begin = time.perf_counter()
        state, _ = task.step(state, batch, key)
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    take()
    return take


def main() -> None:
    steps = {name: stepper(changes) for name, changes in track(VARIANTS.items(), "compiling")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(ROUNDS), "measuring"):
        for name, take in steps.items():
            seconds[name].append(take())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = medians["the recipe"]
    shape = Shape.of(recipes.get("demo"))
    print(f"\n{shape.rows * shape.length / base:,.0f} positions a second\n\n| step | seconds | ratio |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.3f} | {value / base:.2f} |")
    print(json.dumps({name: {"seconds": value, "ratio": value / base} for name, value in medians.items()}))


if __name__ == "__main__":
    main()
