"""One question to a trained model: name what a file shows, draw what a prompt says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from geminid.batches.mixture import VIDEO_FRAMES, pick_frames
from geminid.corpus import documents, recordings
from geminid.corpus.animations import read_frames
from geminid.corpus.emoji import UndrawableError, fit, render
from geminid.document import Document
from geminid.evaluate.drawing import best_drawings
from geminid.evaluate.respondent import Respondent, load_respondent
from geminid.tokens.audio import log_mel
from geminid.tokens.ids import time_tag
from geminid.train.compiled import keep_compiled
from geminid.train.rundir import RunDir, read_json

NUM_CANDIDATES = 5
MAX_BYTES = 100_000_000  # of a file that is read at once


def name(file: Path, run_dir: Path, language: str) -> dict[str, Any]:
    """What the model writes about a picture, recording, animation or video, and its likeliest names.

    ValueError for a file that is none of these, is broken or empty, or a language that the run does not know.
    """
    RunDir(run_dir).recipe()  # says so when this is no run
    names = read_json(RunDir(run_dir).names)
    if language not in names:
        raise ValueError(f"language '{language}' is not among those of this run: {', '.join(sorted(names))}")
    keep_compiled()
    respondent = load_respondent(run_dir)
    kind, question = read(file, respondent, language)
    texts = sorted(set(names[language].values()))
    scores = respondent.likelihoods([question], respondent.names(texts))[0].astype(np.float64)
    chances = np.exp(scores - np.logaddexp.reduce(scores))
    best = np.argsort(-chances)[:NUM_CANDIDATES]
    return {
        "file": str(file),
        "kind": kind,
        "language": language,
        "name": texts[best[0]],
        "written": respondent.say([question])[0],
        "candidates": [{"name": texts[k], "probability": float(chances[k])} for k in best],
    }


def read(file: Path, respondent: Respondent, language: str) -> tuple[str, Document]:
    """The kind of a file, and the question about it."""
    recipe = respondent.recipe
    size = recipe.data.picture_size
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty; give a picture, recording, animation or video")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}: cut it")
    if file.suffix.lower() == ".svg":
        return "picture", documents.see(draw_svg(file, size), language)
    try:
        with Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) == 1:
                return "picture", documents.see(fit(picture, size), language)
    except UnidentifiedImageError:
        return listen(file, respondent, language)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is a broken picture ({error}); save it again as PNG") from None
    frames, times = read_frames(file, recipe.data.frames, size)
    return "animation", watched(frames, times, language)


def watched(frames: np.ndarray, times: tuple[float, ...], language: str) -> Document:
    kept, at = pick_frames(frames, times, VIDEO_FRAMES)
    return documents.watch(kept, [time_tag(t) for t in at], language)


def draw_svg(file: Path, size: int) -> np.ndarray:
    try:
        return render(file.read_text(encoding="utf-8"), size)
    except (UndrawableError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is a broken SVG ({error}); save it again") from None


def listen(file: Path, respondent: Respondent, language: str) -> tuple[str, Document]:
    """A video by its frames, anything else that FFmpeg reads by its sound."""
    recipe = respondent.recipe
    try:
        with av.open(str(file)) as container:
            if container.streams.video:
                frames, times = read_video(container, recipe.data.frames, recipe.data.picture_size)
                if len(frames):
                    return "video", watched(frames, times, language)
            if not container.streams.audio:
                raise ValueError(f"{file} holds neither picture nor sound; give another file")
        samples = recordings.trim(recordings.decode(file))
    except av.FFmpegError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); give a picture, recording or video") from None
    if not len(samples):
        raise ValueError(f"{file} is silent; record it again")
    return "recording", documents.hear(log_mel(samples, recipe.audio), language)


def read_video(container: Any, count: int, size: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """`count` frames evenly over a video: uint8 [count size size 3] and their times in seconds."""
    shown = [(frame.time or 0.0, fit(frame.to_image(), size)) for frame in container.decode(video=0)]
    if not shown:
        return np.zeros((0, size, size, 3), np.uint8), ()
    kept = [shown[i * len(shown) // count] for i in range(count)]
    return np.stack([picture for _, picture in kept]), tuple(time - kept[0][0] for time, _ in kept)


def draw(prompt: str, style: str, out: Path, run_dir: Path, seed: int) -> dict[str, Any]:
    """Writes the model's drawing of `prompt` as a PNG, complete or not at all.

    ValueError for an empty prompt, one that is too long, or a style that the run does not know.
    """
    recipe = RunDir(run_dir).recipe()
    if out.is_dir():
        raise ValueError(f"--out {out} is a directory; name a file in it, such as {out / 'drawing.png'}")
    styles = [known for known in (*recipe.data.styles, "photo") if known != recipe.data.held_out_style]
    if style not in styles:
        raise ValueError(f"style '{style}' was not trained on; known: {', '.join(styles)}")
    prompt = prompt.strip()
    if not prompt:
        raise ValueError("the prompt is empty; say what to draw, such as 'red apple'")
    keep_compiled()
    respondent = load_respondent(run_dir)
    room = recipe.joint.row_length - (recipe.data.picture_size // recipe.codec.downsample) ** 2 - 8
    if len(respondent.space.encode(prompt)) > room:
        raise ValueError(f"the prompt has {len(respondent.space.encode(prompt))} pieces; at most {room}: shorten it")
    names = read_json(RunDir(run_dir).names)
    speaking = [language for language, known in names.items() if prompt in known.values()]
    picture = best_drawings(respondent, [prompt], [style], speaking or sorted(names), seed)[0][0]
    partial = out.with_name(out.name + ".partial")
    Image.fromarray(picture).save(partial, "PNG")
    os.replace(partial, out)
    return {"file": str(out), "prompt": prompt, "style": style, "seed": seed, "size": list(picture.shape[:2])}
