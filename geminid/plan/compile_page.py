"""The page of a compiled step: its schedule as timelines, one of the step and one of a trip of each long loop.

One HTML file without scripts from elsewhere, pictures or fonts; the drawings are SVG.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from geminid.plan.schedule import Event, Played

WIDTH, ROW, LEFT = 1100, 22, 110  # pixels
NARROWEST = 0.3  # pixels; what is narrower is drawn with its neighbours
MOST_LOOPS = 6
COLOURS = {
    "compute": "#4e79a7", "loops": "#9c755f", "waiting": "#d62728", "memory": "#edc948", "network": "#b07aa1",
    "host": "#ff9da7",
}  # fmt: skip
LINKS = "#59a14f"
STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1150px;color:#222}
table{border-collapse:collapse}td,th{padding:2px 10px;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right}svg{background:#fafafa;display:block;margin:0 0 1em}text{font:11px system-ui,sans-serif}"""


def write_page(path: Path, answer: Mapping[str, Any], played: Played) -> None:
    """Writes under a temporary name first: what has its final name is whole."""
    title = f"{answer['recipe']} on {answer['slices']} x {answer['topology']}"
    longest = sorted(played.loops.items(), key=lambda pair: -pair[1][0] * pair[1][1])[:MOST_LOOPS]
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>{_figures(answer)}",
        f"<h2>The step: {answer['step_time_s']:.3g} s</h2>{timeline(played.events, answer['step_time_s'])}",
    ]
    for name, (trips, trip_s, events) in longest:
        heading = f"Loop {escape(name)}: {trips} trips of {trip_s * 1e3:.3g} ms"
        parts.append(f"<h2>{heading}</h2>{timeline(events, trip_s)}")
    parts.append(f"<h2>What moves</h2>{_moves(answer['collectives'])}<p>The model: {escape(answer['model'])}.</p>")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("\n".join(parts), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def timeline(events: Sequence[Event], total_s: float) -> str:
    """A lane for each kind of event, time to the right. total_s: the time that the whole width stands for."""
    lanes = sorted({event.lane for event in events}, key=lambda lane: (lane.startswith("links"), lane))
    scale = (WIDTH - LEFT) / total_s if total_s > 0 else 0.0
    drawn = []
    for row, lane in enumerate(lanes):
        drawn.append(f"<text x='4' y='{row * ROW + 15}'>{escape(lane)}</text>")
        for begin_s, end_s, label in _merged([each for each in events if each.lane == lane], scale):
            x, width = LEFT + begin_s * scale, max((end_s - begin_s) * scale, NARROWEST)
            drawn.append(
                f"<rect x='{x:.2f}' y='{row * ROW + 3}' width='{width:.2f}' height='{ROW - 6}'"
                f" fill='{COLOURS.get(lane, LINKS)}'><title>{escape(label)}</title></rect>"
            )
    height = ROW * len(lanes)
    return f"<svg width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}'>{''.join(drawn)}</svg>"


def _merged(events: Sequence[Event], scale: float) -> list[tuple[float, float, str]]:
    """Events in order; those too narrow to see, and close to the one before, become part of it."""
    found: list[tuple[float, float, str]] = []
    for each in sorted(events, key=lambda event: event.begin_s):
        label = f"{each.name} {each.label} {(each.end_s - each.begin_s) * 1e3:.3g} ms"
        narrow = (each.end_s - each.begin_s) * scale < NARROWEST
        if narrow and found and (each.begin_s - found[-1][1]) * scale < NARROWEST:
            begin_s, end_s, known = found[-1]
            found[-1] = begin_s, max(end_s, each.end_s), known
        else:
            found.append((each.begin_s, each.end_s, label))
    return found


def _figures(answer: Mapping[str, Any]) -> str:
    rows = [(key, value) for key, value in answer.items() if key not in ("collectives", "model")]
    cells = (f"<tr><th>{escape(key)}<td class='n'>{escape(_shown(value))}" for key, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _moves(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "<tr><th>kind<th>axes<th>asynchronous<th>times<th>GB<th>s<th>exposed s<th>compute beside it"
    body = "".join(
        f"<tr><td>{escape(row['kind'])}<td>{escape(', '.join(row['axes']))}<td>{'yes' if row['asynchronous'] else 'no'}"
        f"<td class='n'>{row['count']:,.0f}<td class='n'>{row['bytes'] / 1e9:,.2f}<td class='n'>{row['seconds']:.3g}"
        f"<td class='n'>{row['exposed_s']:.3g}<td>{escape(', '.join(row['overlaps']))}"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {size}" for key, size in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
