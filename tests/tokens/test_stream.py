"""Streams: what is made carries the loss, what is seen takes the places that its features need."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid import recipes
from geminid.config import AudioConfig, VisionConfig
from geminid.document import Document, Segment, make_image, make_text, see_audio, see_image, see_text, tag
from geminid.tokens.ids import NUM_SIZES, IdSpace
from geminid.tokens.stream import Streamer
from geminid.tokens.text import train_tokenizer

RECIPE = recipes.demo()
CODE_WEIGHT = 0.25
SENTENCES = ["dog", "a hot air balloon", "chien", "собака", "what came first?"] * 5
WORDS = st.sampled_from(["dog", "собака", "a hot air balloon", "日", "7"])

SEGMENTS = st.one_of(
    st.sampled_from(["draw", "digit", "word", "lang:fr", "style:photo", "time:63", "size:9"]).map(tag),
    WORDS.map(see_text),
    WORDS.map(make_text),
    st.integers(0, 255).map(lambda k: see_image(np.full((32, 32, 3), k, np.uint8))),
    st.tuples(st.integers(1, 32), st.integers(1, 32)).map(lambda shape: make_image(np.full(shape, 3, np.int32))),
    st.integers(1, 300).map(lambda n: see_audio(np.full((n, 128), n, np.float32))),
)
DOCUMENTS = st.lists(SEGMENTS, max_size=8).map(lambda segments: Document(tuple(segments), "test"))


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> IdSpace:
    path = tmp_path_factory.mktemp("tokenizer") / "text.model"
    train_tokenizer(SENTENCES, 320, path)
    return IdSpace.load(RECIPE, path)


@pytest.fixture(scope="module")
def streamer(space) -> Streamer:
    return Streamer(space, RECIPE.vision, RECIPE.audio, CODE_WEIGHT)


def soft_tokens(frames: int) -> int:
    """A global one, then two stride-2 convolutions and 8 at a time: 32 frames or what is left; cut at 1.28 s."""
    return 1 + math.ceil(min(frames, 128) / 32)


def spelt(space: IdSpace, segment: Segment) -> list[str]:
    """A segment's positions, by name."""
    if segment.kind == "tag":
        return [segment.text]
    if segment.kind == "audio":
        return ["boa"] + ["soft_audio"] * soft_tokens(len(segment.mel))
    if segment.kind == "image" and segment.role == "see":
        return ["boi"] + ["soft_image"] * 2  # all of it, and the global token
    if segment.kind == "image":
        height, width = segment.codes.shape
        return ["boi", f"size:{height}", f"size:{width}"] + ["code"] * (height * width) + ["eoi"]
    return ["piece"] * len(space.encode(segment.text))


def standing(document: Document, names: list[str]) -> list[tuple[int, int] | None]:
    """Row and column of the code that follows each position."""
    drawn = [s.codes.shape for s in document.segments if s.codes is not None and s.role == "make"]
    cells = iter([(row, column) for height, width in drawn for row in range(height) for column in range(width)])
    return [next(cells) if after == "code" else None for after in [*names[1:], ""]]


def name_of(space: IdSpace, i: int) -> str:
    if i < space.text_start:
        return space.specials[i]
    return "piece" if i < space.code_start else "code"


@given(document=DOCUMENTS)
def test_positions_and_weights(space, streamer, document):
    stream = streamer(document)
    names, weights = ["bos"], [0.0]
    for segment in document.segments:
        part = spelt(space, segment)
        names += part
        made = segment.role == "make"
        weights += [(CODE_WEIGHT if segment.kind == "image" else 1.0) if made else 0.0] * len(part)
    if document.segments and document.segments[-1].role == "make":
        names.append("eos")
        weights.append(1.0)
    assert [name_of(space, i) for i in stream.ids] == names
    assert stream.weights.tolist() == weights
    assert stream.num_answers == sum(weight > 0 for weight in weights)
    assert (stream.ids.dtype, stream.weights.dtype) == (np.int32, np.float32)
    assert len(stream) == len(names)
    row_and_column = [divmod(place - 1, NUM_SIZES) if place else None for place in stream.places]
    assert row_and_column == standing(document, names)


@given(document=DOCUMENTS)
def test_features_stand_in_the_order_of_their_places(space, streamer, document):
    stream = streamer(document)
    seen = [s.pixels for s in document.segments if s.pixels is not None]
    heard = [s.mel for s in document.segments if s.mel is not None]
    assert all(a is b for a, b in zip(stream.pictures, seen, strict=True))
    assert all(a is b for a, b in zip(stream.mels, heard, strict=True))
    assert stream.soft_per_mel == tuple(soft_tokens(len(mel)) for mel in heard)
    assert (stream.ids == space.special("soft_audio")).sum() == sum(stream.soft_per_mel)
    assert (stream.ids == space.special("soft_image")).sum() == 2 * len(seen)


@given(document=DOCUMENTS)
def test_what_is_made_can_be_read_back(space, streamer, document):
    stream = streamer(document)
    made = stream.ids[stream.weights > 0]
    words = [s.text for s in document.segments if s.role == "make" and s.kind == "text"]
    codes = [s.codes for s in document.segments if s.role == "make" and s.kind == "image"]
    assert space.decode(made).replace(" ", "") == "".join(words).replace(" ", "")
    assert (made >= space.code_start).sum() == sum(c.size for c in codes)
    if len(codes) == 1:
        assert (space.decode_codes(made, *codes[0].shape) == codes[0]).all()


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 127, 128, 129, 10_000])
def test_soft_tokens_of_a_clip(streamer, frames):
    assert streamer.soft_tokens_of_clip(frames) == soft_tokens(frames)
    assert streamer.soft_tokens_of_clip(frames) <= RECIPE.audio.num_soft_tokens == 5


@pytest.mark.parametrize(("convolutions", "reduction", "expected"), [(1, 1, 51), (2, 1, 26), (2, 4, 8), (3, 5, 4)])
def test_soft_tokens_follow_the_encoder(space, convolutions, reduction, expected):
    audio = AudioConfig(conv_widths=(8,) * convolutions, reduction=reduction)
    streamer = Streamer(space, VisionConfig(soft_grid=3), audio)
    stream = streamer(Document((see_audio(np.zeros((100, 128))), see_image(np.zeros((32, 32, 3), np.uint8))), "test"))
    assert (
        (stream.ids == space.special("soft_audio")).sum()
        == expected
        == 1 + math.ceil(100 / 2**convolutions / reduction)
    )
    assert (stream.ids == space.special("soft_image")).sum() == 3 * 3 + 1


def test_a_question_is_the_beginning_of_its_document(streamer):
    question = (see_image(np.zeros((32, 32, 3), np.uint8)), tag("lang:fr"))
    asked = streamer(Document(question, "see"))
    answered = streamer(Document((*question, make_text("chien")), "see"))
    assert answered.ids[: len(asked)].tolist() == asked.ids.tolist()
    assert not asked.weights.any()
    assert (answered.weights[len(asked) :] == 1).all()


def test_an_unknown_tag_is_refused(streamer):
    with pytest.raises(ValueError, match="unknown special 'lang:xx'"):
        streamer(Document((tag("lang:xx"),), "test"))
