"""Documents: only the answer is a target, and without it the rest is the question, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid.corpus import documents
from geminid.document import Document, Segment

PIXELS = [np.full((4, 4, 3), k, np.uint8) for k in range(5)]
MEL = np.ones((7, 128), np.float32)
CODES = np.arange(6).reshape(2, 3)
TIMES = ["time:0", "time:2", "time:9"]
EXAMPLES = [(PIXELS[0], "baba"), (PIXELS[1], "dodo")]
QUESTION = documents.ORDER_QUESTIONS[0]

# task: the document with its answer, the one without, the language of the answer
TASKS = {
    "see": (documents.see(PIXELS[0], "fr", "chien"), documents.see(PIXELS[0], "fr"), "fr"),
    "hear": (documents.hear(MEL, "ru", "собака"), documents.hear(MEL, "ru"), "ru"),
    "digit": (documents.digit(MEL, 7), documents.digit(MEL), "und"),
    "watch": (documents.watch(PIXELS[:3], TIMES, "el", "σκύλος"), documents.watch(PIXELS[:3], TIMES, "el"), "el"),
    "order": (
        documents.order(PIXELS[:3], TIMES, QUESTION, "en", "dog"),
        documents.order(PIXELS[:3], TIMES, QUESTION, "en"),
        "en",
    ),
    "draw": (documents.draw("dog", "noto", CODES), documents.draw("dog", "noto"), "und"),
    "translate": (
        documents.translate("en", "dog", "fr", "chien"),
        documents.translate("en", "dog", "fr"),
        "fr",
    ),
    "few_shot": (
        documents.few_shot(EXAMPLES, [(PIXELS[2], "baba")]),
        documents.few_shot(EXAMPLES, [(PIXELS[2], None)]),
        "und",
    ),
}


def plain(segment: Segment) -> tuple:
    """A segment as a value that can be compared."""
    arrays = (segment.pixels, segment.codes, segment.mel)
    return segment.kind, segment.role, segment.text, *(None if a is None else (a.shape, a.tobytes()) for a in arrays)


def plain_segments(document: Document) -> list[tuple]:
    return [plain(segment) for segment in document.segments]


def spelt(document: Document) -> str:
    """One word a segment: the words of texts and tags, the first byte of pictures."""
    words = {"image": lambda s: f"picture{s.pixels.flat[0]}" if s.pixels is not None else "codes"}
    return " ".join(words.get(s.kind, lambda s: s.text or s.kind)(s) for s in document.segments)


@pytest.mark.parametrize("task", TASKS)
def test_the_question_is_the_document_without_its_answer(task):
    full, question, language = TASKS[task]
    assert full.task == question.task == task
    assert full.language == question.language == language
    assert plain_segments(question) == plain_segments(full)[:-1]
    assert full.segments[-1].role == "make"
    assert {s.role for s in question.segments} == {"see"}


def test_what_is_made_is_the_answer_itself():
    made = {task: full.segments[-1] for task, (full, _, _) in TASKS.items()}
    assert made["draw"].kind == "image" and made["draw"].codes is CODES and made["draw"].pixels is None
    words = {task: segment.text for task, segment in made.items() if segment.kind == "text"}
    assert words == {
        "see": "chien",
        "hear": "собака",
        "digit": "7",
        "watch": "σκύλος",
        "order": "dog",
        "translate": "chien",
        "few_shot": "baba",
    }


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("see", "picture0 lang:fr chien"),
        ("hear", "audio lang:ru собака"),
        ("digit", "audio digit 7"),
        ("watch", "time:0 picture0 time:2 picture1 time:9 picture2 lang:el σκύλος"),
        ("order", f"time:0 picture0 time:2 picture1 time:9 picture2 {QUESTION} lang:en dog"),
        ("draw", "draw style:noto dog codes"),
        ("translate", "lang:en dog lang:fr chien"),
        ("few_shot", "word picture0 baba word picture1 dodo word picture2 baba"),
    ],
)
def test_reading_order(task, expected):
    assert spelt(TASKS[task][0]) == expected


def test_a_drawing_without_prompt_names_its_style_only():
    assert spelt(documents.draw(None, "photo", CODES)) == "draw style:photo codes"


def test_zero_is_an_answer():
    assert documents.digit(MEL, 0).segments[-1].text == "0"


def test_a_frame_without_time_is_refused():
    with pytest.raises(ValueError):
        documents.video(PIXELS[:3], TIMES[:2])


def test_every_query_of_few_shot_is_a_target():
    document = documents.few_shot(EXAMPLES, [(PIXELS[2], "dodo"), (PIXELS[3], "baba"), (PIXELS[4], None)])
    assert [s.text for s in document.segments if s.role == "make"] == ["dodo", "baba"]
    assert spelt(document).endswith("word picture2 dodo word picture3 baba word picture4")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_made_up_words_are_different_and_of_two_syllables(seed, count):
    words = documents.made_up_words(np.random.default_rng(seed), count)
    assert len(set(words)) == len(words) == count
    vowels = set("aeiou")
    for word in words:
        assert [letter in vowels for letter in word] == [False, True, False, True]
    assert words == documents.made_up_words(np.random.default_rng(seed), count)
