"""Pretraining batches: two of a kind under one label, captions that are true, and a cursor of one number."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from geminid.batches.memory import Memory, pad_mels
from geminid.batches.pairs import (
    CAPTION_LENGTH,
    CaptionedClips,
    CaptionedPictures,
    PictureBatches,
    caption_ids,
    iterate,
)

STEPS = 12


@pytest.fixture(scope="module")
def pictures(memory, space) -> CaptionedPictures:
    return CaptionedPictures(memory, space, 16, STEPS)


@pytest.fixture(scope="module")
def sounds(memory, space) -> CaptionedClips:
    return CaptionedClips(memory, space, 16, STEPS)


@pytest.fixture(scope="module")
def picture_at(memory) -> dict[bytes, int]:
    return {pixels.tobytes(): i for i, pixels in enumerate(memory.pixels)}


@pytest.fixture(scope="module")
def clip_at(memory) -> dict[bytes, int]:
    return {stored(mel): i for i, mel in enumerate(memory.mels)}


def stored(mel: np.ndarray) -> bytes:
    return mel[:192].astype(np.float16).tobytes()


def indices(batch: dict, picture_at: dict[bytes, int]) -> list[int]:
    return [picture_at[pixels.tobytes()] for pixels in batch["pictures"]]


def says(space, row: np.ndarray, tag: str, text: str) -> bool:
    """Whether a caption is `<tag> text <eos>` and zeros, or as much of it as there is room for."""
    end = row.tolist().index(space.special("eos"))
    said = space.decode(row[1:end])
    whole = end + 1 < len(row)
    return (
        space.specials[row[0]] == tag
        and not row[end + 1 :].any()
        and (said == text if whole else said and text.startswith(said))
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


SOURCES = {
    "codec": lambda memory, space: PictureBatches(memory, 16, STEPS),
    "vision": lambda memory, space: CaptionedPictures(memory, space, 16, STEPS),
    "audio": lambda memory, space: CaptionedClips(memory, space, 16, STEPS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_batch_depends_on_the_seed_and_its_number_alone(kind, memory, space):
    first, again = (SOURCES[kind](memory, space) for _ in range(2))
    backwards = {i: again[i] for i in reversed(range(STEPS))}
    assert all(same(first[i], backwards[i]) for i in range(STEPS))
    assert not same(first[0], first[1])
    other = Memory(dataclasses.replace(memory.recipe, seed=memory.recipe.seed + 1), memory.dataset)
    assert not same(SOURCES[kind](other, space)[0], first[0])


@pytest.mark.parametrize("kind", SOURCES)
def test_the_iterator_resumes_where_its_state_was_taken(kind, memory, space):
    source = SOURCES[kind](memory, space)
    iterator = iterate(source)
    for i in range(5):
        assert same(next(iterator), source[i])
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iterate(source)
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == STEPS - 5
    assert all(same(batch, source[i]) for i, batch in enumerate(rest, 5))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_batch_has_one_shape(kind, memory, space):
    source = SOURCES[kind](memory, space)
    shapes = {tuple((k, v.shape, v.dtype) for k, v in source[i].items()) for i in range(len(source))}
    assert len(shapes) == 1
    assert {shape[0] for name, shape, _ in shapes.pop() if name != "names"} == {16}


@pytest.mark.parametrize("kind", [CaptionedPictures, CaptionedClips])
def test_an_odd_batch_is_refused(kind, memory, space):
    with pytest.raises(ValueError, match=r"batch 15 is odd.*use 16"):
        kind(memory, space, 15, STEPS)


# --- pictures ---


def test_the_codec_reads_training_pictures_only(memory, picture_at):
    source = PictureBatches(memory, 64, STEPS)
    seen = {i for step in range(STEPS) for i in indices(source[step], picture_at)}
    assert seen == {i for i, meta in enumerate(memory.dataset.pictures) if meta.split == "train"}


def test_pictures_come_in_pairs_of_one_concept(memory, pictures, picture_at):
    metas = memory.dataset.pictures
    for step in range(STEPS):
        chosen = [metas[i] for i in indices(pictures[step], picture_at)]
        assert {meta.split for meta in chosen} == {"train"}
        assert {meta.core for meta in chosen} == {True}
        assert [m.concept for m in chosen[::2]] == [m.concept for m in chosen[1::2]]
        assert len({m.concept for m in chosen}) == 8


def test_the_two_pictures_are_different_ones(pictures, picture_at):
    for step in range(STEPS):
        found = indices(pictures[step], picture_at)
        assert all(a != b for a, b in zip(found[::2], found[1::2], strict=True))


def test_the_two_pictures_have_two_styles_where_there_are_two(memory, space, picture_at):
    """As the class promises; every concept of the tiny set has at least two styles to learn from."""
    metas = memory.dataset.pictures
    source = CaptionedPictures(memory, space, 16, 40)
    alike = set()
    for step in range(40):
        found = [metas[i] for i in indices(source[step], picture_at)]
        alike |= {(a.concept, a.style) for a, b in zip(found[::2], found[1::2], strict=True) if a.style == b.style}
    assert alike == set()


def test_a_label_points_at_the_english_name(memory, space, pictures, read_concept):
    met = set()
    for step in range(STEPS):
        batch = pictures[step]
        for label, pixels in zip(batch["labels"], batch["pictures"], strict=True):
            met.add(read_concept(pixels))
            assert says(space, batch["names"][label], "lang:en", memory.dataset.names["en"][read_concept(pixels)])
    assert met == set(memory.dataset.concepts)


def test_a_caption_names_the_picture(memory, space, pictures, read_concept):
    languages = set()
    for step in range(STEPS):
        batch = pictures[step]
        for pixels, row in zip(batch["pictures"], batch["texts"], strict=True):
            tag = space.specials[row[0]]
            languages.add(tag.removeprefix("lang:"))
            name = memory.dataset.names[tag.removeprefix("lang:")][read_concept(pixels)]
            assert says(space, row, tag, name)
    assert languages == set(memory.recipe.data.languages)


# --- sounds ---


def metas_of(batch: dict, memory: Memory, clip_at: dict[bytes, int]) -> list:
    found = [clip_at[stored(mel[:n])] for mel, n in zip(batch["mels"], batch["frames"], strict=True)]
    return [memory.dataset.clips[i] for i in found]


def test_sounds_come_in_pairs_of_one_word_in_mixed_languages(memory, sounds, clip_at):
    words, languages = set(), []
    for step in range(STEPS):
        batch = sounds[step]
        metas = metas_of(batch, memory, clip_at)
        assert {meta.split for meta in metas} == {"train"}
        assert (batch["labels"][::2] == batch["labels"][1::2]).all()
        assert len(set(batch["labels"].tolist())) == 8
        for first, second in zip(metas[::2], metas[1::2], strict=True):
            assert (first.concept, first.digit) == (second.concept, second.digit)
            assert first.kind == "digit" or first.language == second.language
        words |= {(meta.concept, meta.digit) for meta in metas}
        languages.append(len({meta.language for meta in metas if meta.kind == "name"}))
    assert len(words) > 12
    assert any(digit is not None for _, digit in words)
    assert max(languages) > 1


def test_a_caption_says_what_is_heard(memory, space, sounds, clip_at):
    for step in range(STEPS):
        batch = sounds[step]
        assert (batch["texts"] == batch["names"][batch["labels"]]).all()
        for meta, row in zip(metas_of(batch, memory, clip_at), batch["texts"], strict=True):
            if meta.digit is not None:
                assert says(space, row, "digit", str(meta.digit))
            else:
                assert says(space, row, f"lang:{meta.language}", memory.dataset.names[meta.language][meta.concept])


def test_the_names_of_a_batch_are_different_and_begin_with_those_that_are_heard(sounds):
    sizes = set()
    for step in range(STEPS):
        batch = sounds[step]
        assert len({row.tobytes() for row in batch["names"]}) == len(batch["names"])
        assert batch["labels"].max() < 8
        sizes.add(batch["names"].shape)
    assert len(sizes) == 1  # one compiled program


def test_the_two_sounds_are_different_ones(memory, sounds, clip_at):
    """Every word of the tiny set has at least two training clips, a digit one of a real voice and one synthetic."""
    twice = set()
    for step in range(STEPS):
        batch = sounds[step]
        found = [stored(mel[:n]) for mel, n in zip(batch["mels"], batch["frames"], strict=True)]
        twice |= {memory.dataset.clips[clip_at[a]].text for a, b in zip(found[::2], found[1::2], strict=True) if a == b}
    assert twice == set()


def test_every_word_is_heard_in_every_language(memory, space, clip_at):
    source = CaptionedClips(memory, space, 16, 100)
    heard = {(m.language, m.concept) for step in range(100) for m in metas_of(source[step], memory, clip_at)}
    assert heard >= {(language, concept) for language, names in memory.dataset.names.items() for concept in names}


def test_no_sounds_is_one_line(recipe, silent_dataset, space):
    with pytest.raises(ValueError, match=r"the data set has no .*; add a package with recordings") as error:
        CaptionedClips(Memory(recipe, silent_dataset), space, 16, STEPS)
    assert "\n" not in str(error.value)


# --- captions and log-mels ---


def test_a_caption_is_cut_before_its_end_mark(space):
    row = caption_ids(space, "fr", "unbelievably " * 9)
    assert row.shape == (CAPTION_LENGTH,) and row.dtype == np.int32
    assert row[0] == space.special("lang:fr")
    assert row[-1] == space.special("eos")
    assert "unbelievably unbelievably".startswith(space.decode(row)[:12])
    with pytest.raises(ValueError, match="unknown special 'lang:xx'"):
        caption_ids(space, "xx", "dog")


def test_padding_of_log_mels_is_zero_and_the_cut_is_counted():
    mels = [np.full((n, 3), n, np.float16) for n in (1, 5, 9)]
    padded, frames = pad_mels(mels, 6)
    assert padded.dtype == np.float32 and frames.dtype == np.int32
    assert frames.tolist() == [1, 5, 6]
    assert padded[:, :, 0].tolist() == [[1, 0, 0, 0, 0, 0], [5, 5, 5, 5, 5, 0], [9, 9, 9, 9, 9, 9]]
