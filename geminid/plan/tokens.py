"""What a recipe makes of data: positions of the stream for text, pictures, sound and video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from geminid.config import Recipe
from geminid.plan.checks import number, positive, split

PICTURE_MARKERS = 4  # <boi> height width codes... <eoi>
# kind of data -> which rate turns its amount into tokens
RATES = {
    "text": None,  # tokens already
    "pictures_read": "picture_read",
    "pictures_written": "picture_written",
    "audio_s": "audio_second",
    "video_s": "video_second",
}


def token_rates(recipe: Recipe, video_fps: float) -> dict[str, float]:
    """Tokens of one unit of each modality, markers included.

    soft_image, soft_audio_second: soft tokens alone. picture_read: <boi> and soft tokens. picture_written: image codes
    and their four markers. audio_second: of clips as long as the recipe reads, with <boa> and the global token of each.
    video_frame: a time stamp and a picture that is read. video_second: `video_fps` frames, without the sound.
    """
    audio, side = recipe.audio, recipe.data.picture_size // recipe.codec.downsample
    frame = 2 + recipe.vision.num_soft_tokens
    return {
        "text": 1,
        "image_codes": side**2,
        "picture_written": side**2 + PICTURE_MARKERS,
        "soft_image": recipe.vision.num_soft_tokens,
        "picture_read": 1 + recipe.vision.num_soft_tokens,
        "soft_audio_second": 1 / (audio.hop_s * audio.frames_per_soft_token),
        "audio_second": (1 + audio.num_soft_tokens) / audio.max_s,
        "video_frame": frame,
        "video_second": frame * positive("--video-fps", video_fps),
    }


def amounts(data: Sequence[str]) -> dict[str, float]:
    """`KIND=AMOUNT` texts as numbers: text in tokens, pictures in pictures, audio_s and video_s in seconds."""
    found = {}
    for text in data:
        kind, amount = split("--data", text, "=", "KIND=AMOUNT")
        if kind not in RATES:
            raise ValueError(f"unknown kind of data '{kind}'; known: {', '.join(RATES)}")
        found[kind] = found.get(kind, 0.0) + number(f"--data {kind}", amount)
    return found


def available(data: Mapping[str, float], rates: Mapping[str, float] | None) -> dict[str, float]:
    """Tokens of each kind of data; ValueError where it takes a recipe to count them."""
    if rates is None and (counted := [kind for kind in data if RATES[kind]]):
        raise ValueError(f"--data {counted[0]} is not in tokens; give --recipe, which says how many tokens it makes")
    return {
        kind: amount * (rates[rate] if rates is not None and (rate := RATES[kind]) else 1)
        for kind, amount in data.items()
    }


def check_enough(needed: float, there: Mapping[str, float], epochs: float) -> None:
    """ValueError when a plan needs more tokens than `epochs` passes over the data give."""
    total = math.fsum(there.values())
    if needed > total * epochs:
        raise ValueError(
            f"the plan needs {needed:.4g} tokens and the data gives {total * epochs:.4g} "
            f"({total:.4g} x {epochs:g} epochs); plan fewer FLOP, add data, or allow "
            f"--epochs {math.ceil(needed / total)} (after 4 each is worth less: Muennighoff et al. 2023)"
        )
