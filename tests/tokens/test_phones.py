"""Which phones are heard in which part of a word: by the definition, and by hand."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geminid.corpus.speech import Synthesiser
from geminid.tokens.phones import ALPHABET, NUM_PHONES, PARTS, phone_ids, phones_by_part


def spelled(found: np.ndarray, part: tuple[float, float]) -> str:
    return "".join(ALPHABET[k] for k in np.flatnonzero(found[PARTS.index(part)]))


def test_stress_and_length_and_diacritics_are_left_out():
    assert [ALPHABET[k] for k in phone_ids("œ̃ dˈɛ̃ː")] == ["œ", "d", "ɛ"]
    assert len(set(ALPHABET)) == NUM_PHONES


def test_a_cat_by_hand():
    found = phones_by_part(phone_ids("kˈat"))
    assert spelled(found, (0, 1)) == "akt"
    assert spelled(found, (0, 0.5)) == "ak"  # half of the a is on either side
    assert spelled(found, (0.5, 1)) == "at"
    assert [spelled(found, (k / 3, (k + 1) / 3)) for k in range(3)] == ["k", "a", "t"]


def test_the_alphabet_has_the_phones_that_are_spoken():
    """Of words in each language of the demo, at most one letter in a hundred is missing; marks are no letters."""
    spoken = {
        "en": ["the quick brown fox jumps over the lazy dog", "measure church judge thing oyster"],
        "fr": ["portez ce vieux whisky au juge blond qui fume", "un bon vin blanc, champagne, huit, agneau"],
        "es": ["el pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia", "jirafa, llave, yema, ñandú"],
        "ca": ["jove xef, porti whisky amb quinze glaçons d'hidrogen", "llibre, pingüí, àguila, rellotge"],
        "ru": ["съешь же ещё этих мягких французских булок да выпей чаю"],
        "bg": ["жълтата дюля беше щастлива, че пухът, който цъфна, замръзна като гьон"],
        "el": ["ξεσκεπάζω την ψυχοφθόρα βδελυγμία", "γάτα, χέρι, θάλασσα, δέντρο"],
    }
    synthesiser = Synthesiser()
    heard = "".join(ipa for language, texts in spoken.items() for ipa in synthesiser.phones(texts, language))
    letters = [sign for sign in heard if unicodedata.category(sign)[0] == "L" and unicodedata.category(sign) != "Lm"]
    missing = [sign for sign in letters if sign not in ALPHABET]
    assert len(letters) > 300 and len(missing) <= len(letters) / 100, missing


@given(st.lists(st.integers(0, NUM_PHONES - 1), min_size=1, max_size=30))
def test_a_phone_is_in_the_parts_that_hold_half_of_it(phones):
    """In exact numbers (Almazan et al. 2014, section 3.1): 1, 2, 3, 4 equal parts, and a phone is 1/n of the word."""
    found = phones_by_part(phones)
    parts = [(Fraction(k, level), Fraction(k + 1, level)) for level in (1, 2, 3, 4) for k in range(level)]
    assert [(float(begin), float(end)) for begin, end in parts] == list(PARTS)
    for row, (begin, end) in zip(found, parts, strict=True):
        expected = set()
        for i, phone in enumerate(phones):
            shared = min(end, Fraction(i + 1, len(phones))) - max(begin, Fraction(i, len(phones)))
            if shared >= Fraction(1, 2 * len(phones)):
                expected.add(phone)
        assert set(np.flatnonzero(row)) == expected


@given(st.lists(st.integers(0, NUM_PHONES - 1), min_size=1, max_size=30))
def test_the_whole_holds_every_phone_and_the_parts_hold_no_other(phones):
    found = phones_by_part(phones)
    assert set(np.flatnonzero(found[0])) == set(phones)
    assert not (found & ~found[0]).any()
    halves = found[1] | found[2]
    assert set(np.flatnonzero(halves)) == set(phones)  # each phone lies by half or more in one of the two


@given(st.lists(st.integers(0, NUM_PHONES - 1), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_of_a_clip_that_is_cut_only_the_beginning_is_told(phones, heard):
    kept = phones[: max(1, round(heard * len(phones)))]
    np.testing.assert_array_equal(phones_by_part(phones, heard), phones_by_part(kept))


def test_half_a_cat_by_hand():
    ids = phone_ids("kˈat ɪn ɐ hˈat")  # k a t ɪ n ɐ h a t
    assert spelled(phones_by_part(ids, 1 / 3), (0, 1)) == "akt"
    assert spelled(phones_by_part(ids, 1 / 3), (0, 0.5)) == "ak"
    assert spelled(phones_by_part(ids, 0.56), (0.5, 1)) == "ntɪ"  # of the first five, with half of the t
    assert spelled(phones_by_part(ids, 0.001), (0.5, 1)) == "k"  # one phone at least


def test_nothing_said_is_nothing_told():
    assert not phones_by_part([]).any()
