"""Arrays -> pieces of HTML that need no other file: data URIs and inline SVG.

Letters: S picture side in pixels, T frames of log-mel, D mels, n samples.
"""

from __future__ import annotations

import base64
import io
import math
import re
import wave
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

SPECTROGRAM_SIZE = (224, 96)  # pixels; the same for every clip, time from left to right
_INK = "#010203"  # stands for the page's text colour until the SVG is in the page
_LINE = "#040506"  # stands for the page's accent colour
_PANELS_A_ROW = 3
_STYLE = {
    "svg.fonttype": "none",  # text stays text and takes the page's font
    "svg.hashsalt": "geminid",  # the same figure gives the same bytes
    "font.size": 8,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def picture_uri(pixels: np.ndarray) -> str:
    """uint8 [S, S, 3] RGB -> data URI of a PNG of the same size."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture of the report is {pixels.dtype} {list(pixels.shape)}; needs uint8 [S, S, 3]")
    return _png_uri(Image.fromarray(pixels))


def spectrogram_uri(log_mel: np.ndarray) -> str:
    """Log-mel float [T, D] -> data URI of a PNG, low mels at the bottom, each clip on its own scale."""
    if log_mel.ndim != 2 or log_mel.size == 0:
        raise ValueError(f"a log-mel of the report is {list(log_mel.shape)}; needs [T, D] with at least one frame")
    low, high = np.percentile(log_mel, (2, 99.5))
    scaled = np.clip((log_mel.T[::-1] - low) / max(high - low, 1e-6), 0, 1)
    colours = mpl.colormaps["magma"](scaled)[..., :3]
    picture = Image.fromarray((255 * colours).round().astype(np.uint8))
    return _png_uri(picture.resize(SPECTROGRAM_SIZE, Image.Resampling.BILINEAR))


def sound_uri(samples: np.ndarray, sample_rate: int) -> str:
    """int16 [n] mono at `sample_rate` Hz -> data URI of a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return _data_uri("audio/wav", buffer.getvalue())


def curves_svg(points: Sequence[Mapping[str, float]], label: str) -> Markup:
    """Logged points, each {"step": i, name: value, ...} -> inline SVG with one small panel a name, loss first."""
    names = {name for point in points for name in point} - {"step"}
    names = sorted(names, key=lambda name: (name != "loss", not name.startswith("loss"), name))
    num_rows = -(-len(names) // _PANELS_A_ROW)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.75 * num_rows), layout="constrained")
        for number, name in enumerate(names):
            axes = figure.add_subplot(num_rows, _PANELS_A_ROW, number + 1)
            pairs = [(point["step"], point[name]) for point in points if name in point]
            steps, values = np.array(pairs, float).T
            axes.plot(steps, values, color=_LINE, linewidth=0.7, alpha=0.45)
            axes.plot(steps, smoothed(values), color=_LINE, linewidth=1.3)
            axes.set_title(name, loc="left", fontsize=8.5)
            axes.tick_params(length=2, width=0.5)
            axes.locator_params(nbins=4)
            axes.margins(x=0.02)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), label)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a fifteenth of the curve; windows are cut at both ends."""
    half = len(values) // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = np.maximum(0, np.arange(len(values)) - half)
    stops = np.minimum(len(values), np.arange(len(values)) + half + 1)
    return (sums[stops] - sums[starts]) / (stops - starts)


def scale_svg(value: float, references: Sequence[tuple[str, float]], bar: float | None) -> Markup:
    """A share in [0, 1] as a bar over its whole range; references as thin marks, the bar to reach as a triangle."""
    width, height = 150, 16

    def place(share: float) -> float:
        return round(width * min(1.0, max(0.0, share)), 1)

    parts = [f'<rect class="ground" x="0" y="5" width="{width}" height="7"/>']
    parts.append(f'<rect class="value" x="0" y="5" width="{place(value)}" height="7"/>')
    for label, share in references:
        x = place(share)
        parts.append(
            Markup('<line class="reference" x1="{}" x2="{}" y1="3" y2="14"><title>{}</title></line>').format(
                x, x, label
            )
        )
    if bar is not None:
        x = place(bar)
        parts.append(f'<path class="bar" d="M{x - 3.5} 0h7l-3.5 5z"/>')
    body = Markup("").join(Markup(part) for part in parts)
    return Markup('<svg class="scale" viewBox="-4 0 {} {}" role="img" aria-hidden="true">{}</svg>').format(
        width + 8, height, body
    )


def _inline(svg: str, label: str) -> Markup:
    """A stand-alone SVG document -> an element that takes the page's colours and names no address."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = svg.replace(_INK, "currentColor").replace(_LINE, "var(--accent)")
    # ids are document-wide: two figures must not share one
    prefix = re.sub(r"\W", "-", label)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    return Markup(re.sub(r"<svg", f'<svg class="curves" role="img" aria-label="{prefix}"', svg, count=1))


def _png_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def is_finite(value: object) -> bool:
    """Whether a logged value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
