"""The id space: three ranges that do not meet, and every text and image comes back from its ids."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geminid import recipes
from geminid.tokens.ids import NUM_SIZES, IdSpace, special_names, time_tag
from geminid.tokens.text import train_tokenizer

RECIPE = recipes.demo()
NUM_CODES = 8 * 5 * 5 * 5  # FSQ levels of Mentzer et al. 2023, table 1, for about 2^10 codes
SENTENCES = ["dog", "a hot air balloon", "chien", "собака", "σκύλος", "what came first?"] * 5
# First and last character of the letters of a script, and of the emoji.
SCRIPTS = (
    "az",
    "AZ",
    "09",
    "à",
    "ÿ",
    "αω",
    "ая",
    "ұұ",
    "את",
    "بي",
    "कह",
    "กฮ",
    "가힣",
    "あん",
    "アン",
    "一鿿",
    "😀🙏",
    "𐌰𐍊",
)
LETTERS = st.one_of(
    [st.characters(min_codepoint=ord(s[0]), max_codepoint=ord(s[-1]), exclude_categories=["Cn", "Cs"]) for s in SCRIPTS]
)
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> IdSpace:
    path = tmp_path_factory.mktemp("tokenizer") / "text.model"
    train_tokenizer(SENTENCES, 320, path)
    return IdSpace.load(RECIPE, path)


def test_three_ranges_side_by_side(space):
    names = special_names(RECIPE)
    assert [space.special(name) for name in names] == list(range(len(names)))
    assert space.text_start == len(names) == len(set(names))
    assert space.code_start - space.text_start == space.text.get_piece_size()
    assert space.size - space.code_start == NUM_CODES == space.num_codes


def test_zero_is_padding(space):
    assert space.special("pad") == 0


def test_every_language_style_and_size_has_a_special(space):
    for language in RECIPE.data.languages:
        space.special(f"lang:{language}")
    for style in (*RECIPE.data.styles, "photo"):
        space.special(f"style:{style}")
    for side in range(1, 33):
        space.special(f"size:{side}")


def test_text_pieces_and_ids_are_one_to_one(space):
    pieces = [space.text.id_to_piece(i - space.text_start) for i in range(space.text_start, space.code_start)]
    assert [space.text.piece_to_id(piece) + space.text_start for piece in pieces] == list(
        range(space.text_start, space.code_start)
    )


@given(words=WORDS)
def test_text_in_any_script_comes_back(space, words):
    text = unicodedata.normalize("NFKC", " ".join(words))
    ids = space.encode(text)
    assert all(space.text_start <= i < space.code_start for i in ids)
    assert space.decode(ids) == text
    assert space.decode(np.array(ids)) == text


@pytest.mark.parametrize(
    "text", ["한국어", "日本語", "🦉🔑", "ﬁne ①", "\U0001f468‍\U0001f469‍\U0001f467", "ⵣ", "ꙮ", "Ω≠∞"]
)
def test_bytes_stand_in_for_pieces_never_seen(space, text):
    ids = space.encode(text)
    assert any(space.text.is_byte(i - space.text_start) for i in ids)
    assert space.decode(ids) == unicodedata.normalize("NFKC", text)


def test_only_text_is_decoded_as_text(space):
    ids = space.encode("a dog")
    mixed = [space.special("bos"), space.code_start, *ids, space.special("eos"), space.size - 1]
    assert space.decode(mixed) == "a dog"
    assert space.decode([0, 1, space.size - 1]) == ""


@given(
    codes=st.tuples(st.integers(1, NUM_SIZES), st.integers(1, NUM_SIZES)).flatmap(
        lambda shape: arrays.arrays(np.int32, shape, elements=st.integers(0, NUM_CODES - 1), fill=st.just(0))
    )
)
def test_an_image_comes_back_row_by_row(space, codes):
    height, width = codes.shape
    ids = space.encode_codes(codes)
    assert len(ids) == height * width + 4
    assert [space.specials[i] for i in ids[:3]] == ["boi", f"size:{height}", f"size:{width}"]
    assert space.specials[ids[-1]] == "eoi"
    assert [i - space.code_start for i in ids[3:-1]] == [int(c) for row in codes for c in row]
    assert max(ids) < space.size
    assert (space.decode_codes(ids, height, width) == codes).all()
    assert space.decode(ids) == ""


@pytest.mark.parametrize("shape", [(33, 4), (4, 33), (0, 4)])
def test_an_image_without_size_special_is_refused(space, shape):
    with pytest.raises(ValueError, match="unknown special 'size:"):
        space.encode_codes(np.zeros(shape, int))


def test_a_missing_code_is_counted(space):
    ids = space.encode_codes(np.zeros((3, 4), int))
    with pytest.raises(ValueError, match="11 image codes for a 3 x 4 image; need 12"):
        space.decode_codes([*ids[:4], *ids[5:]], 3, 4)


@pytest.mark.parametrize(
    ("name", "known"), [("lang:xx", "lang:en"), ("style:crayon", "style:photo"), ("size:33", "size:32"), ("bso", "bos")]
)
def test_an_unknown_special_names_its_family(space, name, known):
    with pytest.raises(ValueError, match=f"unknown special '{name}'; known: .*{known}") as error:
        space.special(name)
    assert "\n" not in str(error.value)


def test_no_tokenizer_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="`geminid train demo` makes one"):
        IdSpace.load(RECIPE, tmp_path / "text.model")


@given(st.floats(0, 15.875, exclude_max=True))
def test_a_time_stamp_is_the_nearest_quarter_second(seconds):
    family, quarter = time_tag(seconds).split(":")
    assert family == "time"
    assert abs(int(quarter) * 0.25 - seconds) <= 0.125


def test_every_time_has_a_special(space):
    for seconds in (0.0, 0.1, 1.99, 15.7, 15.9, 16.0, 3600.0):
        space.special(time_tag(seconds))
    assert time_tag(0.0) == "time:0"
    assert time_tag(1.0) == "time:4"
    assert time_tag(15.75) == time_tag(3600.0) == "time:63"
