"""Plans as PNG files. Matplotlib is imported here and by nobody else in this room."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from geminid.plan.fit import Runs
from geminid.plan.law import TRAINING_FLOPS, Law

_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
_FREE, _FAILED = "#e8e8e8", "#d62728"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name, then rename: what has its final name is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=144)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def budget(path: Path, law: Law, runs: Runs | None, plan: tuple[float, float] | None) -> None:
    """Loss of compute-optimal training and, at the plan's FLOP, of every size; with runs, fitted against measured."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    centre = TRAINING_FLOPS * plan[0] * plan[1] if plan else 1e22
    compute = np.geomspace(centre / 1e3, centre * 1e3, 121)
    left.plot(compute, [law.loss(*law.optimum(each)) for each in compute], color=_COLOURS[0], label="compute-optimal")
    if plan:
        left.plot(centre, law.loss(*plan), "o", color=_COLOURS[1], label="the plan")
    left.set(xscale="log", xlabel="training FLOP", ylabel="loss, nats a token")
    left.legend(frameon=False)
    if runs is not None:
        right.plot(runs.loss, law.loss(runs.params, runs.tokens), ".", color=_COLOURS[0])
        right.axline((float(runs.loss.min()),) * 2, slope=1, color="black", linewidth=0.6)
        right.set(xlabel="measured loss", ylabel="fitted loss")
    else:
        best = law.optimum(centre)[0]
        sizes = np.geomspace(best / 30, best * 30, 121)
        right.plot(sizes, law.loss(sizes, centre / (TRAINING_FLOPS * sizes)), color=_COLOURS[0])
        right.axvline(best, color="black", linewidth=0.6)
        if plan:
            right.plot(plan[0], law.loss(*plan), "o", color=_COLOURS[1])
        right.set(xscale="log", xlabel=f"parameters, at {centre:.3g} FLOP", ylabel="loss, nats a token")
    save(figure, path)


def ladder(path: Path, law: Law, answer: Mapping[str, Any]) -> None:
    """Loss against tokens, a line of the law for each size and the finished rungs on it; the held-out one foretold."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    rungs, held_out = answer["rungs"], answer["held_out"]
    most = held_out["tokens"]
    tokens = np.geomspace(min(rung["tokens"] for rung in rungs), most, 61)
    for params, colour in zip(sorted({rung["params"] for rung in rungs}), itertools.cycle(_COLOURS)):
        measured = [(rung["tokens"], rung["loss"]) for rung in rungs if rung["params"] == params]
        axes.plot(tokens, law.loss(params, tokens), color=colour, label=f"{params / 1e6:.2f}M parameters")
        axes.plot(*zip(*measured, strict=True), "o", color=colour)
    low, high = answer["predicted_interval"]
    foretold = answer["predicted_loss"]
    label = f"{held_out['params'] / 1e6:.2f}M, foretold"
    axes.plot(tokens, law.loss(held_out["params"], tokens), "--", color="black", linewidth=0.8)
    axes.errorbar(
        most,
        foretold,
        [[max(foretold - low, 0)], [max(high - foretold, 0)]],
        fmt="s",
        color="black",
        fillstyle="none",
        capsize=4,
        label=label,
    )
    axes.plot(most, answer["measured_loss"], "x", color=_FAILED, markersize=9, label="measured")
    axes.set(xscale="log", xlabel="positions trained on", ylabel="loss, nats an answered id")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def placement(
    path: Path, grid: tuple[int, int, int], wirings: Mapping[str, Sequence[Sequence[int] | None]], failed: Sequence[int]
) -> None:
    """A pod's cubes, one row of panels for each wiring and one panel for each layer z; a colour for each slice."""
    figure = Figure(figsize=(2.2 * grid[2] + 0.6, 2.3 * len(wirings)), layout="constrained")
    panels = figure.subplots(len(wirings), grid[2], squeeze=False)
    for row, (name, slices) in zip(panels, wirings.items(), strict=True):
        colours = dict.fromkeys(failed, _FAILED)
        for i, cubes in enumerate(slices):
            colours |= dict.fromkeys(cubes or (), _COLOURS[i % len(_COLOURS)])
        for z, axes in enumerate(row):
            for x, y in np.ndindex(*grid[:2]):
                cube = int(np.ravel_multi_index((x, y, z), grid))
                square = Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, color=colours.get(cube, _FREE), linewidth=0)
                axes.add_patch(square)
                axes.text(x + 0.5, y + 0.5, str(cube), ha="center", va="center", fontsize=7)
            axes.set(
                xlim=(0, grid[0]), ylim=(0, grid[1]), xticks=[], yticks=[], aspect="equal", title=f"{name}, z = {z}"
            )
            axes.title.set_fontsize(8)
    save(figure, path)


def goodput(path: Path, title: str, hosts: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Goodput against the availability of a host, a curve for each wiring."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour in zip(curves.items(), _COLOURS, strict=False):
        axes.plot(hosts, values, label=name, color=colour)
    axes.set(
        xlabel="availability of a host", ylabel="goodput: share of the pod's chips at work", title=title, ylim=(0, 1)
    )
    axes.legend(frameon=False)
    save(figure, path)
