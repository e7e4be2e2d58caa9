"""Short videos made of one still picture that moves, spins, grows or appears."""

from __future__ import annotations

import numpy as np
from PIL import Image

MOTIONS = ("move", "spin", "grow", "appear")
WHITE = (255, 255, 255)


def moving_sprite(rng: np.random.Generator, pixels: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` frames uint8 [S S 3] of a picture in motion. pixels uint8 [S S 3] on white."""
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    side = pixels.shape[0]
    picture = Image.fromarray(pixels)
    direction = rng.uniform(0, 2 * np.pi)
    reach = side * rng.uniform(0.1, 0.3)
    turn = rng.choice([-1, 1]) * rng.uniform(15, 60)  # degrees to either side
    scales = np.linspace(rng.uniform(0.55, 0.7), rng.uniform(0.85, 1.0), count)
    frames = []
    for k in range(count):
        part = k / max(1, count - 1) - 0.5
        dx, dy, angle, scale, fade = 0.0, 0.0, 0.0, 1.0, 1.0
        if motion == "move":
            dx, dy, scale = reach * 2 * part * np.cos(direction), reach * 2 * part * np.sin(direction), 0.85
        elif motion == "spin":
            angle = turn * part * 2
        elif motion == "grow":
            scale = scales[k]
        else:
            fade = (k + 1) / count
        frames.append(_place(picture, dx, dy, angle, scale, fade))
    return frames


def _place(picture: Image.Image, dx: float, dy: float, angle: float, scale: float, fade: float) -> np.ndarray:
    side = picture.width
    small = picture.resize((max(1, round(side * scale)),) * 2, Image.Resampling.BILINEAR)
    small = small.rotate(angle, Image.Resampling.BILINEAR, fillcolor=WHITE)
    frame = Image.new("RGB", (side, side), WHITE)
    corner = (side - small.width) // 2
    frame.paste(small, (corner + round(dx), corner + round(dy)))
    ink = 255.0 - np.asarray(frame, np.float32)
    return (255.0 - fade * ink).round().astype(np.uint8)
