"""The interleaved documents of every task. Training fills them to the end; evaluation stops at the answer.

An answer is a `make` segment: it carries the loss in training, and is what the model says in evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from geminid.document import (
    Document,
    Segment,
    make_image,
    make_text,
    see_audio,
    see_image,
    see_text,
    tag,
)

ORDER_QUESTIONS = ("what came first?", "what came second?", "what came last?")


def see(pixels: np.ndarray, language: str, name: str | None = None) -> Document:
    """Picture -> its name in `language`. pixels uint8 [S S 3]."""
    return Document((see_image(pixels), tag(f"lang:{language}"), *_answer(name)), "see", language)


def hear(mel: np.ndarray, language: str, name: str | None = None) -> Document:
    """Spoken name or sound -> the name in `language`. mel float [T M]."""
    return Document((see_audio(mel), tag(f"lang:{language}"), *_answer(name)), "hear", language)


def digit(mel: np.ndarray, value: int | None = None) -> Document:
    """Spoken digit -> numeral."""
    return Document((see_audio(mel), tag("digit"), *_answer(None if value is None else str(value))), "digit")


def video(frames: Sequence[np.ndarray], times: Sequence[str]) -> tuple[Segment, ...]:
    """Frames, each after its time stamp (the names of specials)."""
    return tuple(s for time, frame in zip(times, frames, strict=True) for s in (tag(time), see_image(frame)))


def watch(frames: Sequence[np.ndarray], times: Sequence[str], language: str, name: str | None = None) -> Document:
    """Video -> the name of what moves."""
    return Document((*video(frames, times), tag(f"lang:{language}"), *_answer(name)), "watch", language)


def order(
    frames: Sequence[np.ndarray], times: Sequence[str], question: str, language: str, name: str | None = None
) -> Document:
    """Pictures one after another, a question about their order -> the name of the one asked for."""
    asked = (see_text(question), tag(f"lang:{language}"))
    return Document((*video(frames, times), *asked, *_answer(name)), "order", language)


def draw(prompt: str | None, style: str, codes: np.ndarray | None = None) -> Document:
    """Words -> image codes. Without prompt: any picture of that style (classifier-free guidance). codes int [h w]."""
    words = () if prompt is None else (see_text(prompt),)
    return Document(
        (tag("draw"), tag(f"style:{style}"), *words, *(() if codes is None else (make_image(codes),))), "draw"
    )


def translate(source: str, name: str, target: str, translation: str | None = None) -> Document:
    """A name in one language -> in another."""
    return Document(
        (tag(f"lang:{source}"), see_text(name), tag(f"lang:{target}"), *_answer(translation)), "translate", target
    )


def few_shot(examples: Sequence[tuple[np.ndarray, str]], queries: Sequence[tuple[np.ndarray, str | None]]) -> Document:
    """Pictures with made-up words, then pictures to name with them. A word stands right behind its picture."""
    segments: list[Segment] = []
    for pixels, word in examples:
        segments += [tag("word"), see_image(pixels), see_text(word)]
    for pixels, answer in queries:
        segments += [tag("word"), see_image(pixels), *_answer(answer)]
    return Document(tuple(segments), "few_shot")


SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def made_up_words(rng: np.random.Generator, count: int, real: Collection[str] = ()) -> list[str]:
    """Different words of two syllables, none of them among the `real` ones."""
    chosen = rng.choice(len(SYLLABLES), (count, 2), replace=True)
    words = ["".join(SYLLABLES[k] for k in pair) for pair in chosen]
    good = len(set(words)) == count and not any(word in real for word in words)
    return words if good else made_up_words(rng, count, real)


def _answer(text: str | None) -> tuple[Segment, ...]:
    return () if text is None else (make_text(text),)
