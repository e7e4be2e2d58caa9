"""Emoji sets in Iconify's JSON: which concept each icon draws, and rendering.

An icon set is a package with `icons.json` (SVG bodies, aliases) and `chars.json` (code points -> icon name, empty in
some sets, whose icons are then found by name).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from geminid.corpus.cldr import normal_code_points

_OVERSAMPLING = 2  # rendered at twice the size, then reduced by a Lanczos filter
_CHUNK = 32  # pictures handed to a worker at once


class UndrawableError(ValueError):
    """An SVG that resvg cannot draw."""


@dataclass(frozen=True)
class IconSet:
    """One style's icons."""

    style: str
    icons: dict[str, dict]
    aliases: dict[str, dict]
    by_points: dict[str, str]  # code points -> icon name
    defaults: dict[str, int]  # left, top, width, height

    def resolve(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Icon name -> the icon that is drawn and the flips ("hFlip", "vFlip") on the way to it."""
        flips: tuple[str, ...] = ()
        while name not in self.icons:
            alias = self.aliases[name]
            flips += tuple(key for key in ("hFlip", "vFlip") if alias.get(key))
            name = alias["parent"]
        return name, flips

    def svg(self, name: str) -> str:
        """The icon as a whole SVG document."""
        name, flips = self.resolve(name)
        icon = self.icons[name]
        left, top, width, height = (
            icon.get(key, self.defaults.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # Iconify's own defaults
        )
        body = icon["body"]
        mirrors = {"hFlip": (2 * left + width, 0, -1, 1), "vFlip": (0, 2 * top + height, 1, -1)}
        for flip in flips:
            right, down, x, y = mirrors[flip]
            body = f'<g transform="translate({right} {down}) scale({x} {y})">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


def read_icon_set(style: str, root: Path) -> IconSet:
    """Reads one set from its unpacked package.

    Raises ValueError, one line, if a file is missing or broken.
    """
    try:
        table = json.loads((root / "icons.json").read_text(encoding="utf-8"))
        chars = json.loads((root / "chars.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"emoji set {style} is broken in {root} ({error}): remove that folder and fetch again"
        ) from None
    defaults = {key: table[key] for key in ("left", "top", "width", "height") if key in table}
    by_points = {normal_code_points(points): name for points, name in chars.items()}
    return IconSet(style, table["icons"], table.get("aliases", {}), by_points, defaults)


def icons_of_concepts(sets: list[IconSet], concepts: dict[str, str]) -> dict[str, dict[str, str]]:
    """Concept -> style -> icon name.

    `concepts` maps code points to concept ids. Sets without code points are searched by the concept's name and by the
    names that the other sets give the same code points. A drawing that two concepts lay claim to goes to neither: old
    sets call the game "cricket" too.
    """
    names_of_points: dict[str, list[str]] = {}
    for icons in sets:
        for points, name in icons.by_points.items():
            names_of_points.setdefault(points, []).append(name)
    found: dict[str, dict[str, str]] = {}
    for icons in sets:
        claims: dict[tuple, list[tuple[str, str]]] = {}
        for points, concept in concepts.items():
            if icons.by_points:
                name = icons.by_points.get(points)
            else:
                wanted = [slug(concept), *sorted(set(names_of_points.get(points, ())))]
                name = next((w for w in wanted if w in icons.icons or w in icons.aliases), None)
            if name is not None:
                claims.setdefault(icons.resolve(name), []).append((concept, name))
        for claimants in claims.values():
            if len(claimants) == 1:
                concept, name = claimants[0]
                found.setdefault(concept, {})[icons.style] = name
    return found


def slug(name: str) -> str:
    """ "jack-o’-lantern" -> "jack-o-lantern": the way the sets name their icons."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['’]", "", name.lower())).strip("-")


def fit(picture: Image.Image, size: int) -> np.ndarray:
    """Any picture -> uint8 [size, size, 3], on white, aspect kept, centred."""
    picture = picture.convert("RGBA")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas)


def render(svg: str, size: int) -> np.ndarray:
    """SVG document -> uint8 [size, size, 3], on white, aspect kept, centred.

    Raises UndrawableError if resvg cannot draw it.
    """
    try:  # a width alone keeps the aspect
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=size * _OVERSAMPLING)
    except ValueError as error:
        raise UndrawableError(str(error)) from None
    return fit(Image.open(io.BytesIO(bytes(png))), size)


def _render_chunk(task: tuple[list[str], int]) -> list[np.ndarray | str]:
    svgs, size = task
    pictures: list[np.ndarray | str] = []
    for svg in svgs:
        try:
            pictures.append(render(svg, size))
        except UndrawableError as error:
            pictures.append(str(error))
    return pictures


def render_all(svgs: Iterable[str], size: int, num_workers: int) -> Iterator[np.ndarray | str]:
    """Renders in worker processes, in order; a string, the reason, stands for a picture that failed."""
    svgs = list(svgs)
    tasks = [(svgs[i : i + _CHUNK], size) for i in range(0, len(svgs), _CHUNK)]
    if num_workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield from _render_chunk(task)
        return
    # spawn: a fork would copy the threads' locks of a process that already runs JAX
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for chunk in pool.map(_render_chunk, tasks):
            yield from chunk
