"""Animated WebP, named by code points -> evenly spaced frames with their times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from geminid.corpus.cldr import normal_code_points
from geminid.corpus.emoji import fit


def find(root: Path) -> dict[str, Path]:
    """Code points -> file, of one unpacked package; half of its files are stills, which are left out.

    Raises ValueError if the package has no animations.
    """
    files = {normal_code_points(p.stem): p for p in sorted((root / "assets").glob("*.webp")) if _moves(p)}
    if not files:
        raise ValueError(f"no animations under {root}: remove that folder and run `geminid data fetch` again")
    return files


def _moves(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(21)
    return header[12:16] == b"VP8X" and bool(header[20] & 0x02)  # WebP container specification, "animation" flag


def read_frames(path: Path, num_frames: int, size: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """One animation -> uint8 [num_frames, size, size, 3] on white, and the start time of each kept frame in seconds.

    Frames are evenly spaced by number and begin with the first. A shorter animation repeats frames.
    Raises ValueError, one line that names the file, if it is missing or broken.
    """
    try:
        with Image.open(path) as animation:
            total = getattr(animation, "n_frames", 1)
            kept = [i * total // num_frames for i in range(num_frames)]
            frames: dict[int, np.ndarray] = {}
            starts: list[float] = []
            now_ms = 0.0
            for i in range(total):
                animation.seek(i)
                starts.append(now_ms / 1000)
                if i in kept:
                    frames[i] = fit(animation, size)
                else:
                    animation.load()  # the duration is known once the frame is decoded
                now_ms += animation.info.get("duration", 0)
    except (OSError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"animation {path} is missing or broken ({error}): remove its package and fetch again"
        ) from None
    return np.stack([frames[i] for i in kept]), tuple(round(starts[i], 3) for i in kept)
