"""The mixture: what each document shows, says and asks agree, and nothing that is held out is in any of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from geminid.batches.memory import Memory
from geminid.batches.mixture import Mixture, order_times, pick_frames
from geminid.document import Document, Segment

ORDINALS = {"what came first?": 0, "what came second?": 1, "what came last?": 2}


@pytest.fixture(scope="module")
def of_task(many_documents) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in many_documents:
        found.setdefault(document.task, []).append(document)
    return found


@pytest.fixture(scope="module")
def picture_at(memory) -> dict[bytes, int]:
    return {pixels.tobytes(): i for i, pixels in enumerate(memory.pixels)}


@pytest.fixture(scope="module")
def clip_at(memory) -> dict[bytes, int]:
    return {mel.tobytes(): i for i, mel in enumerate(memory.mels)}


def plain(document: Document) -> tuple:
    """A document as a value that can be compared."""

    def of(segment: Segment) -> tuple:
        arrays = (segment.pixels, segment.codes, segment.mel)
        parts = (None if a is None else (a.shape, str(a.dtype), a.tobytes()) for a in arrays)
        return segment.kind, segment.role, segment.text, *parts

    return document.task, document.language, document.source, *map(of, document.segments)


def tags(document: Document, family: str) -> list[str]:
    found = [s.text for s in document.segments if s.kind == "tag"]
    return [name.removeprefix(family) for name in found if name.startswith(family)]


def answer(document: Document) -> str:
    last = document.segments[-1]
    assert (last.kind, last.role) == ("text", "make")
    return last.text


def seen(document: Document) -> list[np.ndarray]:
    return [s.pixels for s in document.segments if s.pixels is not None]


def heard(document: Document) -> np.ndarray:
    (mel,) = (s.mel for s in document.segments if s.mel is not None)
    return mel


def within(count: int, draws: int, share: float) -> bool:
    """Five standard deviations of a binomial count: one false alarm in two million."""
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share))


# --- which documents ---


def test_a_document_depends_on_the_seed_and_its_number_alone(mixture, recipe, dataset, codes):
    numbers = [7, 0, 3999, 7, 123, 40, 41, 42]
    again = Mixture(Memory(recipe, dataset), codes)
    assert [plain(mixture(i)) for i in numbers] == [plain(again(i)) for i in reversed(numbers)][::-1]
    other = Mixture(Memory(dataclasses.replace(recipe, seed=recipe.seed + 1), dataset), codes)
    assert [plain(other(i)) for i in numbers] != [plain(mixture(i)) for i in numbers]


def test_documents_are_not_repeated(of_task):
    """Of the tasks with enough to choose from, even in a tiny set."""
    for task in ("few_shot", "order"):
        assert len({plain(document) for document in of_task[task]}) == len(of_task[task])


def test_task_shares_are_the_weights(recipe, of_task, many_documents):
    weights = dataclasses.asdict(recipe.joint.mixture)
    assert of_task.keys() == weights.keys()
    for task, weight in weights.items():
        assert within(len(of_task[task]), len(many_documents), weight / sum(weights.values())), task


def test_a_weight_of_zero_leaves_a_task_out(recipe, dataset, codes):
    weights = dataclasses.replace(recipe.joint.mixture, see=0, draw=0, few_shot=0)
    joint = dataclasses.replace(recipe.joint, mixture=weights)
    mixture = Mixture(Memory(dataclasses.replace(recipe, joint=joint), dataset), codes)
    assert {mixture(i).task for i in range(300)} == {"hear", "digit", "watch", "order", "translate"}


def test_tasks_without_data_are_left_out_and_the_rest_keep_their_proportions(recipe, silent_dataset, codes):
    mixture = Mixture(Memory(recipe, silent_dataset), codes)
    counts = Counter(mixture(i).task for i in range(2000))
    weights = {task: getattr(recipe.joint.mixture, task) for task in ("see", "watch", "order", "draw", "few_shot")}
    assert counts.keys() == weights.keys()
    for task, weight in weights.items():
        assert within(counts[task], 2000, weight / sum(weights.values())), task


# --- what is held out ---


def test_no_held_out_picture_is_shown(memory, of_task, picture_at, dataset):
    used = set()
    for task in ("see", "order", "few_shot"):
        used |= {picture_at[pixels.tobytes()] for document in of_task[task] for pixels in seen(document)}
    core = {i for i, m in enumerate(dataset.pictures) if m.core and m.split == "train"}
    assert used == core


def test_no_moving_picture_is_held_out(of_task, many_documents):
    """Held-out pictures and animations have red ink, training ones have none, moved or not."""
    assert len(of_task["watch"]) > 100
    assert all((pixels[..., 0] == 255).all() for document in many_documents for pixels in seen(document))


def test_no_held_out_picture_is_drawn(of_task, codes, dataset):
    at = {picture.tobytes(): i for i, picture in enumerate(codes)}
    used = {at[document.segments[-1].codes.tobytes()] for document in of_task["draw"]}
    assert used == {i for i, m in enumerate(dataset.pictures) if m.core and m.split == "train"}


def test_no_held_out_recording_is_heard(of_task, clip_at, dataset):
    metas = [
        dataset.clips[clip_at[heard(document).tobytes()]] for task in ("hear", "digit") for document in of_task[task]
    ]
    assert {meta.split for meta in metas} == {"train"}
    assert {(meta.kind, meta.real) for meta in metas} == {
        ("name", False),
        ("sound", True),
        ("digit", False),
        ("digit", True),
    }


def test_animations_of_training_are_watched(of_task, memory, dataset):
    films = {i: dataset.animation(i)[0].tobytes() for i in range(len(dataset.animations))}
    starts = {seen(document)[0].tobytes() for document in of_task["watch"]}
    assert {i for i, first in films.items() if first in starts} == {
        i for i, meta in enumerate(dataset.animations) if meta.split == "train"
    }


# --- what is said ---


def test_pictures_are_named(of_task, dataset, read_concept):
    for document in of_task["see"]:
        (language,) = tags(document, "lang:")
        assert language == document.language
        (pixels,) = seen(document)
        assert answer(document) == dataset.names[language][read_concept(pixels)]
    assert {document.language for document in of_task["see"]} == set(dataset.names)


def test_videos_are_named_and_time_goes_on(of_task, dataset, read_concept):
    for document in of_task["watch"]:
        frames, times = seen(document), [int(t) for t in tags(document, "time:")]
        assert len(frames) == len(times) == 4
        assert times == sorted(times)
        assert answer(document) == dataset.names[document.language][read_concept(np.stack(frames))]


def test_the_order_question_asks_for_the_picture_that_is_named(of_task, dataset, read_concept):
    asked = Counter()
    for document in of_task["order"]:
        (question,) = (s.text for s in document.segments if s.kind == "text" and s.role == "see")
        concepts = [read_concept(pixels) for pixels in seen(document)]
        assert len(set(concepts)) == 3
        times = [int(t) for t in tags(document, "time:")]
        assert times == sorted(set(times))
        assert answer(document) == dataset.names[document.language][concepts[ORDINALS[question]]]
        asked[question] += 1
    assert all(within(asked[question], len(of_task["order"]), 1 / 3) for question in ORDINALS)


def test_few_shot_answers_are_the_words_of_the_examples(of_task, read_concept):
    asked, lengths = Counter(), Counter()
    for document in of_task["few_shot"]:
        words = [(s.text, s.role) for s in document.segments if s.kind == "text"]
        concepts = [read_concept(pixels) for pixels in seen(document)]
        meaning = dict(zip(concepts[:2], (word for word, _ in words[:2]), strict=True))
        assert len(meaning) == len(set(meaning.values())) == 2
        assert [role for _, role in words] == ["see"] * 2 + ["make"] * (len(words) - 2)
        assert [word for word, _ in words[2:]] == [meaning[concept] for concept in concepts[2:]]
        assert len(concepts) == len(words)
        asked.update((len(concepts), concepts[:2].index(concept)) for concept in concepts[2:])
        lengths[len(concepts)] += 1
    assert lengths.keys() == {3, 4, 5, 6, 7, 8}  # a document may end after any of six answers
    for length, count in lengths.items():
        assert within(count, lengths.total(), 1 / 6)
        assert within(asked[length, 0], asked[length, 0] + asked[length, 1], 0.5)


def test_few_shot_words_are_no_names_of_what_is_shown(of_task, dataset, read_concept):
    for document in of_task["few_shot"]:
        shown = {read_concept(pixels) for pixels in seen(document)}
        names = {by_concept[concept] for by_concept in dataset.names.values() for concept in shown}
        assert not {s.text for s in document.segments if s.kind == "text"} & names


def test_what_is_heard_is_named(of_task, dataset, clip_at):
    own = 0
    for document in of_task["hear"]:
        meta = dataset.clips[clip_at[heard(document).tobytes()]]
        assert answer(document) == dataset.names[document.language][meta.concept]
        assert tags(document, "lang:") == [document.language]
        if meta.kind == "name":
            assert document.language in {meta.language, "en"}
            own += document.language == meta.language
            assert not meta.real  # few words have a recording: a real voice would stand for these few
    assert own > len(of_task["hear"]) / 2


def test_digits_are_their_numerals(of_task, dataset, clip_at):
    for document in of_task["digit"]:
        meta = dataset.clips[clip_at[heard(document).tobytes()]]
        assert meta.kind == "digit"
        assert answer(document) == str(meta.digit)
    assert {answer(document) for document in of_task["digit"]} == set("0123456789")


def test_translations_are_of_one_concept_in_two_languages(of_task, dataset):
    pairs = set()
    for document in of_task["translate"]:
        source, target = tags(document, "lang:")
        assert source != target == document.language
        (word,) = (s.text for s in document.segments if s.kind == "text" and s.role == "see")
        concepts = {c for c, name in dataset.names[source].items() if name == word}
        assert answer(document) in {dataset.names[target][concept] for concept in concepts}
        pairs.add((source, target))
    assert len(pairs) == 4 * 3


def test_drawings_are_of_the_prompt_in_the_style(recipe, of_task, dataset, codes):
    at = {picture.tobytes(): i for i, picture in enumerate(codes)}
    silent = 0
    for document in of_task["draw"]:
        meta = dataset.pictures[at[document.segments[-1].codes.tobytes()]]
        assert tags(document, "style:") == [meta.style]
        prompts = [s.text for s in document.segments if s.kind == "text"]
        known = {by_concept[meta.concept] for by_concept in dataset.names.values()}
        assert len(prompts) <= 1 and set(prompts) <= known
        silent += not prompts
    assert within(silent, len(of_task["draw"]), recipe.joint.prompt_dropout)


# --- time ---


def test_pictures_in_order_have_different_times():
    for seed in range(300):
        times = [int(name.removeprefix("time:")) for name in order_times(np.random.default_rng(seed))]
        steps = np.diff([0, *times])
        assert all(2 <= step <= 8 for step in steps[1:])
        assert 0 <= times[0] <= 6


@pytest.mark.parametrize(
    ("length", "count", "expected"), [(8, 4, [0, 2, 5, 7]), (4, 4, [0, 1, 2, 3]), (1, 3, [0, 0, 0])]
)
def test_frames_are_spread_from_the_first_to_the_last(length, count, expected):
    frames = np.arange(length)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    chosen, times_s = pick_frames(frames, tuple(k / 10 for k in range(length)), count)
    assert [int(frame[0, 0, 0]) for frame in chosen] == expected
    assert times_s == [k / 10 for k in expected]
