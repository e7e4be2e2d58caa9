"""Pretraining batches: fixed shares, labels, captions and phones that are true, and a cursor of one number."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import Counter

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
from geminid.tokens.phones import ALPHABET, NUM_PHONES, PARTS

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


# --- pictures ---


def test_the_codec_reads_training_pictures_only(memory, picture_at):
    source = PictureBatches(memory, 64, STEPS)
    seen = {i for step in range(STEPS) for i in indices(source[step], picture_at)}
    assert seen == {i for i, meta in enumerate(memory.dataset.pictures) if meta.split == "train"}


def test_the_pictures_of_a_batch_are_different_ones_of_core_concepts(memory, space, picture_at):
    """Every training picture comes as often as any other: five standard deviations of a binomial count."""
    steps, metas = 200, memory.dataset.pictures
    source = CaptionedPictures(memory, space, 16, steps)
    count: Counter[int] = Counter()
    for step in range(steps):
        found = indices(source[step], picture_at)
        assert len(set(found)) == 16
        count.update(found)
    core = {i for i, meta in enumerate(metas) if meta.split == "train" and meta.core}
    assert count.keys() == core
    share = 16 / len(core)
    assert all(abs(n - steps * share) <= 5 * math.sqrt(steps * share * (1 - share)) for n in count.values())


def test_a_batch_may_be_larger_than_the_data_set(memory, space):
    assert len(CaptionedPictures(memory, space, 99, 1)[0]["pictures"]) == 99
    assert len(CaptionedClips(memory, space, 300, 1)[0]["mels"]) == 300


def test_a_label_points_at_the_english_name(memory, space, pictures, read_concept):
    met = set()
    for step in range(STEPS):
        batch = pictures[step]
        for label, pixels in zip(batch["labels"], batch["pictures"], strict=True):
            met.add(read_concept(pixels))
            assert says(space, batch["names"][label], "lang:en", memory.dataset.names["en"][read_concept(pixels)])
        assert batch["allowed"].all() and batch["allowed"].shape == (16, len(batch["names"]))
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


def kinds_of(metas: list) -> list[str]:
    return ["digit" if m.kind == "digit" else "real" if m.real else "synthetic" for m in metas]


@pytest.mark.parametrize(("batch", "real", "digits"), [(16, 4, 2), (15, 3, 1), (3, 0, 0)])
def test_a_quarter_is_real_names_and_an_eighth_digits(memory, space, clip_at, batch, real, digits):
    source = CaptionedClips(memory, space, batch, STEPS)
    first = Counter()
    for step in range(STEPS):
        metas = metas_of(source[step], memory, clip_at)
        assert {meta.split for meta in metas} == {"train"}
        assert {meta.kind for meta in metas} <= {"name", "digit"}
        kinds = kinds_of(metas)
        assert Counter(kinds) == Counter(real=real, digit=digits, synthetic=batch - real - digits)
        assert kinds[batch - real :] == ["real"] * real  # the last ones, which are not captioned
        first[kinds[0]] += 1
    assert digits < 2 or (first["digit"] and first["synthetic"])  # mixed: the first part of a batch is captioned


def test_the_sounds_of_a_batch_mix_languages(memory, sounds, clip_at):
    for step in range(STEPS):
        assert len({meta.language for meta in metas_of(sounds[step], memory, clip_at) if meta.kind == "name"}) > 1


def test_every_name_comes_from_two_voices(memory, sounds, clip_at):
    """Of 16: 4 recordings with a synthetic voice each, 2 digits, and 3 words by two synthetic voices."""
    for step in range(STEPS):
        metas = metas_of(sounds[step], memory, clip_at)
        names = [
            (meta, label) for meta, label in zip(metas, sounds[step]["labels"], strict=True) if meta.kind == "name"
        ]
        for meta, label in names:
            others = [other for other, same in names if same == label and other.voice != meta.voice]
            assert any(not other.real for other in others) if meta.real else others


def with_clips(memory: Memory, *kinds: str) -> Memory:
    """The data set when it has these kinds of clips to learn from, and no others."""
    dataset = copy.copy(memory.dataset)
    kept = zip(dataset.clips, kinds_of(dataset.clips), strict=True)
    dataset.clips = [meta if kind in kinds else dataclasses.replace(meta, split="other") for meta, kind in kept]
    less = Memory(memory.recipe, dataset)
    vars(less)["mels"] = memory.mels  # the sounds are the same
    return less


@pytest.mark.parametrize("missing", ["real", "digit"])
def test_synthetic_names_stand_in_for_what_is_missing(memory, space, clip_at, missing):
    less = with_clips(memory, *{"real", "digit", "synthetic"} - {missing})
    batch = CaptionedClips(less, space, 16, 1)[0]
    expected = {"real": 4, "digit": 2, missing: 0}
    expected["synthetic"] = 16 - sum(expected.values())
    assert Counter(kinds_of(metas_of(batch, less, clip_at))) == Counter(expected)
    assert {meta.split for meta in metas_of(batch, less, clip_at)} == {"train"}


def test_a_caption_says_what_is_heard(memory, space, sounds, clip_at):
    for step in range(STEPS):
        batch = sounds[step]
        assert (batch["texts"] == batch["names"][batch["labels"]]).all()
        for meta, row in zip(metas_of(batch, memory, clip_at), batch["texts"], strict=True):
            if meta.digit is not None:
                assert says(space, row, "digit", str(meta.digit))
            else:
                assert says(space, row, f"lang:{meta.language}", memory.dataset.names[meta.language][meta.concept])


def test_all_words_are_candidates_in_every_batch(memory, space, sounds):
    """Every word that is said in training, once: names in their languages, and digits."""
    clips = [meta for meta in memory.dataset.clips if meta.split == "train" and meta.kind != "sound"]
    said = {("digit", str(m.digit)) if m.kind == "digit" else (f"lang:{m.language}", m.text) for m in clips}
    first = sounds[0]["names"]
    rows = {row.tobytes(): row for row in first}
    assert len(rows) == len(first) == len(said) == 12 * 4 + 10
    for tag, text in said:
        assert sum(says(space, row, tag, text) for row in rows.values()) == 1, text
    assert all(np.array_equal(sounds[step]["names"], first) for step in range(STEPS))


def test_real_recordings_choose_among_recorded_words_and_the_others_among_all(memory, space, sounds, clip_at):
    """Every digit has a recording in the tiny set; of the names, those of seven concepts have."""
    clips = [meta for meta in memory.dataset.clips if meta.split == "train"]
    recorded = {(f"lang:{m.language}", m.text) for m in clips if m.kind == "name" and m.real}
    recorded |= {("digit", str(digit)) for digit in range(10)}
    table = sounds[0]["names"]
    expected = [any(says(space, row, tag, text) for tag, text in recorded) for row in table]
    assert sum(expected) == len(recorded) == 7 * 4 + 10 < len(table)
    for step in range(STEPS):
        batch = sounds[step]
        assert batch["allowed"].dtype == bool
        for meta, label, row in zip(metas_of(batch, memory, clip_at), batch["labels"], batch["allowed"], strict=True):
            assert row[label]
            assert row.tolist() == (expected if meta.kind == "name" and meta.real else [True] * len(table))


def test_the_phones_are_those_of_what_is_heard(memory, space, clip_at):
    """The whole clip's phones by the transcription itself; a clip that is cut has the first of them alone."""
    source, dataset, cut = CaptionedClips(memory, space, 32, 30), memory.dataset, 0
    for step in range(30):
        batch = source[step]
        assert batch["phones"].dtype == bool and batch["phones"].shape == (32, len(PARTS), NUM_PHONES)
        for mel, n, found in zip(batch["mels"], batch["frames"], batch["phones"], strict=True):
            meta = dataset.clips[clip_at[stored(mel[:n])]]
            said = dataset.phones[meta.language][meta.text].replace("ˈ", "")
            heard = said[: round(len(said) * min(1, 1.28 * 16_000 / meta.num_samples))]
            assert {ALPHABET[k] for k in np.flatnonzero(found[0])} == set(heard)
            first, second = (found[PARTS.index(half)] for half in ((0, 0.5), (0.5, 1)))
            assert first[ALPHABET.index(heard[0])] and second[ALPHABET.index(heard[-1])]
            cut += heard != said
    assert cut > 0


def test_every_word_is_heard_in_every_language(memory, space, clip_at):
    source = CaptionedClips(memory, space, 16, 100)
    heard = {(m.language, m.concept) for step in range(100) for m in metas_of(source[step], memory, clip_at)}
    assert heard >= {(language, concept) for language, names in memory.dataset.names.items() for concept in names}


def test_no_synthetic_voice_is_one_line(recipe, memory, silent_dataset, space):
    real_alone = with_clips(memory, "real", "digit")
    for memory in (Memory(recipe, silent_dataset), real_alone):
        with pytest.raises(ValueError, match=r"no synthetic voices; set data\.synthetic_voices to") as error:
            CaptionedClips(memory, space, 16, STEPS)
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
