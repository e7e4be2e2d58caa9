"""`geminid goodput`: the ledger of a run on slices as a table, and as a page with a timeline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from geminid.runtime.conductor import Places
from geminid.runtime.goodput import Activity
from geminid.runtime.timeline import STEP, ledgers, totals
from geminid.train.rundir import RunDir, read_rows

COLOURS = {
    STEP: "#4c9f70", Activity.USEFUL: "#4c9f70", Activity.DEGRADED: "#a5c882", Activity.DETECTION: "#d1495b",
    Activity.REGROUP: "#e8a13a", Activity.STATE_FETCH: "#edc531", Activity.COMPILE: "#8d6a9f",
    Activity.REPLAY: "#c9712e", Activity.ROLLBACK: "#7d1128", Activity.SAVE: "#5c6b73", Activity.AUDIT: "#2e86ab",
    Activity.IDLE: "#dcdcdc", Activity.START_UP: "#9bb1c9",
}  # fmt: skip
INCH_PER_DEVICE = 0.45


def write_page(run_dir: Path) -> dict[str, Any]:
    """Writes RUN/goodput.html, complete or not at all; what `totals` says. ValueError when the run has no ledger."""
    places = Places(RunDir(run_dir))
    summary = totals(places.ledgers)
    page = (
        "<!doctype html><meta charset='utf-8'><title>Goodput</title>"
        "<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}"
        "td,th{padding:.2rem .8rem;text-align:right}td:first-child,th:first-child{text-align:left}"
        "svg{width:100%;height:auto}</style>"
        f"<h1>Goodput {summary['goodput']:.4f}</h1>"
        f"<p>Over {summary['elapsed_s']:.1f} s with {summary['controllers']} controller(s); after the first commit"
        f" {summary['goodput_after_start']:.4f}. Useful and degraded steps over elapsed time, of the slices wanted.</p>"
        f"{_timeline(places)}{_table(summary['classes_s'])}"
    )
    partial = run_dir / "goodput.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(run_dir / "goodput.html")
    return summary


def _table(classes: dict[str, dict[str, float]]) -> str:
    columns = [str(a) for a in Activity if str(a) in classes["all"]]
    head = "".join(f"<th>{column}</th>" for column in ["seconds", *columns, "sum"])
    rows = ""
    for device, spent in classes.items():
        cells = "".join(f"<td>{spent.get(column, 0.0):.2f}</td>" for column in columns)
        rows += f"<tr><td>{device}</td>{cells}<td>{sum(spent.values()):.2f}</td></tr>"
    return f"<table><tr>{head}</tr>{rows}</table>"


def _timeline(places: Places) -> str:
    """Spans of every device, and the losses in the log, as SVG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts = ledgers(places.ledgers)
    shifts = {part["controller"]: part["shift_ns"] for part in parts}
    spans = [
        (device, what, begin + part["shift_ns"], end + part["shift_ns"])
        for part in parts
        for device, what, begin, end in part["spans"]
    ]
    devices = sorted({device for device, *_ in spans})
    figure = Figure(figsize=(14, 1.2 + INCH_PER_DEVICE * len(devices)), layout="constrained")
    axes = figure.add_subplot()
    for row, device in enumerate(devices):
        own = [span for span in spans if span[0] == device]
        bars = [(begin / 1e9, (end - begin) / 1e9) for _, _, begin, end in own]
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=[COLOURS[what] for _, what, _, _ in own])
    lost = [row for row in read_rows(places.events) if row["kind"] == "lost"]
    losses = [row["t"] + shifts[row["controller"]] / 1e9 for row in lost if row["controller"] in shifts]
    axes.vlines(losses, -0.5, len(devices) - 0.5, colors="black", linewidth=0.6)
    axes.set_yticks(range(len(devices)), devices)
    axes.set_xlabel("seconds; black: a process ended")
    shown = {what for _, what, _, _ in spans}
    handles = [Patch(color=colour, label=str(what)) for what, colour in COLOURS.items() if what in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=7, frameon=False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]
