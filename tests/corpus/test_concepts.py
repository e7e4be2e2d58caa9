import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid.config import DataConfig
from geminid.corpus import concepts, splits

CONFIG = DataConfig(styles=("a", "b", "c", "twemoji"))
ICONS = {
    "dog": {"a": "dog", "b": "dog", "c": "dog", "twemoji": "dog"},
    "cat": {"a": "cat", "twemoji": "cat"},
    "owl": {"a": "owl", "b": "owl", "twemoji": "owl"},
    "key": {"a": "key", "b": "key", "twemoji": "key"},
    "ant": {"a": "ant", "b": "ant", "c": "ant"},  # not in the held-out style
    "bee": {"twemoji": "bee"},  # in no other
    "rainbow": {"a": "r", "b": "r", "c": "r", "twemoji": "r"},
    "flag: france": {"a": "f", "b": "f", "c": "f", "twemoji": "f"},
    "man farmer": {"a": "m", "b": "m", "c": "m", "twemoji": "m"},
}
STAMPED = {"dog", "cat", "owl", "key", "ant", "bee"}


def core(config, moving=frozenset()):
    return concepts.core_concepts(config, ICONS, STAMPED, set(moving))


def test_core_needs_the_held_out_style_and_another():
    assert core(CONFIG) == ["cat", "dog", "key", "owl"]


def test_a_cap_prefers_styles_then_movement():
    assert core(dataclasses.replace(CONFIG, num_concepts=2), {"key"}) == ["dog", "key"]
    assert core(dataclasses.replace(CONFIG, num_concepts=2), {"owl", "cat"}) == ["dog", "owl"]


@pytest.mark.parametrize("cap", [-1, 0, 1, 5])
def test_a_wrong_cap_is_told(cap):
    with pytest.raises(ValueError, match=f"data.num_concepts is {cap}; use 2 to 4, or None for all"):
        core(dataclasses.replace(CONFIG, num_concepts=cap))


def test_extras():
    assert concepts.extra_concepts(CONFIG, ICONS, core(CONFIG)) == ["rainbow"]
    assert concepts.extra_concepts(dataclasses.replace(CONFIG, extra_concepts=False), ICONS, []) == []


def test_names_are_made_unique():
    names = {"ram": "баран", "ewe": "баран", "goat": "коза", "bear": "бар", "polar bear": "бар"}
    unique = concepts.unique_names(
        ["bear", "ewe", "goat", "polar bear", "ram", "yak"],
        names,
        {"ram": ["Баран"], "yak": ["Як"]},
        {"ram": ["баран", "рогатый"], "polar bear": []},
    )
    assert unique == {
        "ewe": "баран",
        "ram": "баран (рогатый)",  # its description is taken as well
        "goat": "коза",
        "bear": "бар",
        "polar bear": "бар (polar bear)",
        "yak": "як",
    }


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", "z", "a", "b"])),
    st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from(["x", "y", "Q", "c"]), max_size=2)),
)
def test_names_are_always_unique(names, descriptions):
    everything = list("abcdefgh")
    unique = concepts.unique_names(everything, names, descriptions, {})
    assert list(unique) == everything
    assert len(set(unique.values())) == len(everything)


def test_held_out_pairs_rotate_and_leave_the_fluent_sets_alone():
    styles = {*splits.PAIR_STYLES, "fluent-emoji", "fluent-emoji-flat"}
    drawn = [splits.held_out_pair(f"concept {i}", styles, seed=0) for i in range(1000)]
    assert set(drawn) == set(splits.PAIR_STYLES)
    assert all(140 < drawn.count(style) < 260 for style in splits.PAIR_STYLES)  # 200 expected, 5 sigma is 63
    assert splits.held_out_pair("x", {"noto", "openmoji", "fluent-emoji"}, seed=0) is None  # fewer than 4 to learn from
    assert splits.held_out_pair("x", {"fluent-emoji", "fluent-emoji-flat", "photo", "other"}, seed=0) is None
    one = splits.held_out_pair("x", {"noto", "fluent-emoji", "fluent-emoji-flat", "other"}, seed=0)
    assert one == "noto"


def test_splits_have_their_shares_and_hang_on_the_seed():
    names = [f"concept {i}" for i in range(3000)]
    unseen = [splits.animation_split(name, 0) == "unseen" for name in names]
    assert abs(sum(unseen) / 3000 - 2 / 3) < 0.045  # 5 sigma
    assert unseen != [splits.animation_split(name, 1) == "unseen" for name in names]
    word = [splits.is_word_concept(name, 0) for name in names]
    assert abs(sum(word) / 3000 - 1 / 3) < 0.045
