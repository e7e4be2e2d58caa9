"""The answer of `plan goodput` for people: tables for a terminal, a picture for a page."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Goodput and where the time goes; checkpoint intervals; spare cubes; sensitivity."""
    strategies = result["strategies"]
    table = _table(f"goodput of {result['inputs']['pods']} pods", ["share of pod time", *strategies])
    table.add_row("goodput", *(f"{s['goodput']:.4f}" for s in strategies.values()))
    table.add_row("95% interval", *("{:.4f} to {:.4f}".format(*s["interval"]) for s in strategies.values()))
    table.add_row("interruptions", *(f"{s['interruptions']:.0f}" for s in strategies.values()))
    for activity in dict.fromkeys(name for s in strategies.values() for name in s["shares"]):
        table.add_row(f"  {activity}", *(f"{100 * s['shares'].get(activity, 0):.2f}%" for s in strategies.values()))
    static = f"{result['goodput_static']:.4f}"
    table.add_row("without rewiring", *(static if name == result["strategy"] else "" for name in strategies))
    yield table
    checkpoint = result["checkpoint"]
    formulas = f"Young {checkpoint['young_s']:.0f} s, Daly {checkpoint['daly_s']:.0f} s"
    title = f"disk: best interval {checkpoint['best_s']:.0f} s ({formulas})"
    table = _table(title, ["seconds between checkpoints", "goodput"])
    for interval, goodput in checkpoint["goodput"].items():
        table.add_row(str(interval), f"{goodput:.4f}")
    yield table
    table = _table(f"spare cubes: keep {result['spares']['best']}", ["spares a pod", "goodput", "yield of 64 cubes"])
    for spares, found in result["spares"]["by_number"].items():
        table.add_row(str(spares), f"{found['goodput']:.4f}", f"{found['yield']:.4f}")
    yield table
    table = _table("goodput with one input at half | twice its value", ["input", *strategies])
    for name, row in result["sensitivity"].items():
        table.add_row(name, *("{:.4f} | {:.4f}".format(*row[strategy]) for strategy in strategies))
    yield table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left")
    return table


def check_picture(path: Path) -> None:
    """Before anything is simulated. Raises ValueError for a suffix that is no picture's, FileNotFoundError likewise."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path} is no picture: its name ends in {path.suffix!r}; use .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(path.parent))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Four panels as a picture; the format is the suffix's. It has its name only when it is whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (shares, intervals), (spares, tornado) = figure.subplots(2, 2)
    _draw_shares(shares, result)
    _draw_curves(intervals, spares, result)
    _draw_tornado(tornado, result)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format=path.suffix.removeprefix("."), dpi=120)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _draw_shares(axes: Any, result: Mapping[str, Any]) -> None:
    """What is not useful, by class."""
    strategies = result["strategies"]
    names = dict.fromkeys(n for s in strategies.values() for n in s["shares"] if n != "useful step")
    left = [0.0] * len(strategies)
    for name in names:
        width = [100 * s["shares"].get(name, 0.0) for s in strategies.values()]
        axes.barh(list(strategies), width, left=left, label=name)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_xlabel("% of pod time that is not a step by all pods")
    axes.set_title(", ".join(f"{name} {s['goodput']:.3f}" for name, s in strategies.items()))
    axes.legend(fontsize=7)


def _draw_curves(intervals: Any, spares: Any, result: Mapping[str, Any]) -> None:
    checkpoint = result["checkpoint"]
    if checkpoint["goodput"]:
        intervals.semilogx(list(checkpoint["goodput"]), list(checkpoint["goodput"].values()), marker="o")
        intervals.axvline(checkpoint["young_s"], linestyle="--", label="Young 1974")
        intervals.axvline(checkpoint["daly_s"], linestyle=":", label="Daly 2006")
        intervals.legend()
    intervals.set_xlabel("seconds between disk checkpoints")
    intervals.set_ylabel("goodput")
    found = result["spares"]["by_number"]
    spares.plot(list(found), [row["yield"] for row in found.values()], marker="o")
    spares.set_xlabel("spare cubes a pod")
    spares.set_ylabel("goodput x share of cubes in use")


def _draw_tornado(axes: Any, result: Mapping[str, Any]) -> None:
    """How far each input moves the goodput of the disk strategy and of the chosen one."""
    table = result["sensitivity"]
    names = [name for name in table if name != "as given"]
    for offset, strategy in ((-0.2, "disk"), (0.2, result["strategy"])):
        base = table["as given"][strategy][0]
        for k, name in enumerate(names):
            half, twice = table[name][strategy]
            axes.plot([half - base, twice - base], [k + offset] * 2, linewidth=4, color="C0" if offset < 0 else "C1")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"change of goodput, input halved to doubled\nupper bar {result['strategy']}, lower bar disk")
