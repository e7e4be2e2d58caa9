"""Synthetic speech: a pure function of its arguments, in every language that the demo speaks."""

import hashlib
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest

from geminid.config import DataConfig
from geminid.corpus import speech
from geminid.corpus.speech import VARIANTS, Synthesiser

CONFIG = DataConfig(languages=("en", "ru"), digit_languages=("it",), synthetic_voices=3)
NAMES = {"en": {"cow": "cow", "owl": "owl"}, "ru": {"cow": "корова"}}

PROGRAM = """
import hashlib
from geminid.config import DataConfig
from geminid.corpus.speech import synthetic_clips
names = {"en": {"cow": "cow", "owl": "owl"}, "ru": {"cow": "корова"}}
digest = hashlib.sha256()
for meta, samples in synthetic_clips(names, DataConfig(languages=("en", "ru"), synthetic_voices=3)):
    digest.update(repr(meta).encode() + samples.tobytes())
print(digest.hexdigest())
"""


def speak(text="a red apple", language="en", variant="f2", rate_wpm=160, pitch=50, pitch_range=50) -> np.ndarray:
    return Synthesiser().speak(text, language, variant, rate_wpm, pitch, pitch_range)


def test_two_processes_say_the_same_bytes():
    runs = [
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    digest = hashlib.sha256()
    for meta, samples in speech.synthetic_clips(NAMES, CONFIG):
        digest.update(repr(meta).encode() + samples.tobytes())
    assert runs[0].stdout == runs[1].stdout == digest.hexdigest() + "\n"


def test_what_was_said_before_leaves_no_trace():
    synthesiser = Synthesiser()
    first = synthesiser.speak("une pomme", "fr", "f5", 160, 50, 50)  # f5: flutter and breath noise
    synthesiser.speak("корова", "ru", "m3", 120, 80, 20)
    assert np.array_equal(first, synthesiser.speak("une pomme", "fr", "f5", 160, 50, 50))


def test_voices_differ_from_each_other():
    said = {speak(variant=variant).tobytes() for variant in VARIANTS}
    assert len(said) == len(VARIANTS) == len(set(VARIANTS))


def test_a_higher_rate_is_shorter_and_a_higher_pitch_is_higher():
    assert len(speak(rate_wpm=120)) > 1.15 * len(speak(rate_wpm=160)) > 1.15 * 1.1 * len(speak(rate_wpm=200))
    vowel = [speak("aah", variant="m2", pitch=pitch, pitch_range=0).astype(float) for pitch in (10, 90)]
    low, high = (_fundamental_hertz(samples) for samples in vowel)
    assert 50 < low < high < 400 and high > 1.3 * low


def _fundamental_hertz(samples: np.ndarray) -> float:
    """Highest autocorrelation peak between 50 and 400 Hz of the clip's middle."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    low, high = 16_000 // 400, 16_000 // 50
    return 16_000 / (low + int(correlation[low:high].argmax()))


def test_clips_are_16_khz_trimmed_and_at_minus_3_dbfs():
    samples = speak()
    assert samples.dtype == np.int16 and samples.ndim == 1
    assert 0.4 < len(samples) / 16_000 < 1.2
    assert np.abs(samples.astype(int)).max() == round(32768 * 10 ** (-3 / 20))


def test_every_language_of_the_demo_is_spoken():
    config = DataConfig()
    said = {language: speak("7", language) for language in {*config.languages, *config.digit_languages, "zh"}}
    assert all(0.15 < len(samples) / 16_000 < 1.5 for samples in said.values())
    assert len({samples.tobytes() for samples in said.values()}) == len(said)


def test_an_unknown_language_or_variant_lists_what_exists():
    with pytest.raises(ValueError, match=r"does not speak 'tlh'; it speaks .*\bfr\b.*\bru\b"):
        speak(language="tlh")
    with pytest.raises(ValueError, match=r"no voice variant 'x9'; use one of .*\bf2\b"):
        speak(variant="x9")


def test_nothing_to_pronounce_is_an_empty_clip():
    assert len(speak("")) == 0


# --- pronunciations ---


def letters(ipa: str) -> str:
    """Without stress, length, diacritics and spaces."""
    return "".join(sign for sign in ipa if unicodedata.category(sign) == "Ll")


@pytest.mark.parametrize(
    ("language", "text", "dictionary"),
    [
        ("en", "cat", "k[aæ]t"),  # the broad transcriptions of Wiktionary, of open vowels either sign
        ("en", "fish", "fɪʃ"),
        ("fr", "chat", "ʃa"),
        ("fr", "chien", "ʃjɛ"),
        ("es", "perro", "pero"),
        ("ca", "gos", "ɡos"),
        ("ru", "кот", "kot"),
        ("bg", "риба", "ri[bβ][aɐə]"),
        ("el", "γάτα", "ɣ[aɐ]t[aɐ]"),
        ("nb", "fisk", "fɪsk"),
    ],
)
def test_words_are_pronounced_as_in_the_dictionary(language, text, dictionary):
    (ipa,) = Synthesiser().phones([text], language)
    assert re.fullmatch(dictionary, letters(ipa)), ipa


def test_a_pronunciation_does_not_depend_on_the_texts_beside_it():
    texts = ["dog", "", "A cat.", "7", "...", "two\nlines"]
    together = Synthesiser().phones(texts, "en")
    assert together == [Synthesiser().phones([text], "en")[0] for text in texts]
    assert together[::-1] == Synthesiser().phones(texts[::-1], "en")
    assert [bool(ipa) for ipa in together] == [True, False, True, True, False, True]


def test_all_clauses_are_pronounced():
    dog, cat, owl, all_three = Synthesiser().phones(["A dog.", "A cat;", "an owl!", "A dog. A cat; an owl!"], "en")
    assert all_three == f"{dog} {cat} {owl}"


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("fr", "football américain", "fʊtbɔlameʁikɛ"),
        ("bg", "бутон с „ab“", "butonsab"),
        ("ru", "cd", "sidi"),
        ("el", "βέλος back", "velosbak"),
        ("de", "Laptop", "laptɒp"),
    ],
)
def test_words_of_another_language_carry_no_mark(language, text, spoken):
    """espeak-ng writes "(en)fˈʊtbɔːl(fr) ameʁikˈɛ̃"."""
    (ipa,) = Synthesiser().phones([text], language)
    assert letters(ipa) == spoken
    assert not set(ipa) & set("()_")


def test_a_language_that_is_not_spoken_has_no_pronunciation():
    assert Synthesiser().phones(["Qapla'", "a", "b"], "tlh") == ["", "", ""]
    assert Synthesiser().phones([], "tlh") == Synthesiser().phones([], "en") == []
    assert Synthesiser().phones(["fisk"], "no") == Synthesiser().phones(["fisk"], "nb") != [""]


# --- clips ---


def test_synthetic_clips_say_each_description_first_then_the_name():
    descriptions = {"en": {"cow": ["A cow.", "A white cow."]}, "ru": {"cow": ["Корова."]}}
    found = [meta for meta, _ in speech.synthetic_clips(NAMES, CONFIG, descriptions)]
    texts = {}
    for meta in found:
        texts.setdefault((meta.language, meta.concept), []).append(meta.text)
    assert texts == {
        ("en", "cow"): ["A cow.", "A white cow.", "cow"],
        ("en", "owl"): ["owl"] * 3,
        ("ru", "cow"): ["Корова."] * 3,  # the name is the description
    }
    for language, concept in texts:
        voices = [m.voice for m in found if (m.language, m.concept) == (language, concept)]
        assert len(set(voices)) == 3 and all(voice.removeprefix("espeak-") in VARIANTS for voice in voices)
    assert all(m.kind == "name" and m.split == "train" and not m.real for m in found)


def test_a_concept_sounds_the_same_in_a_smaller_data_set():
    alone = [x for _, x in speech.synthetic_clips({"en": {"owl": "owl"}}, CONFIG)]
    among = [x for m, x in speech.synthetic_clips(NAMES, CONFIG) if m.concept == "owl"]
    assert all(np.array_equal(a, b) for a, b in zip(alone, among, strict=True))


def test_what_stays_too_long_is_counted():
    skipped: Counter[str] = Counter()
    names = {"en": {"list": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"}}
    assert list(speech.synthetic_clips(names, CONFIG, skipped=skipped)) == []
    assert skipped == {"too long": 3}


def test_synthetic_digits_cover_every_language_and_digit():
    found = [meta for meta, _ in speech.synthetic_digits(CONFIG)]
    count = Counter((meta.language, meta.digit) for meta in found)
    assert count == {(language, digit): 20 for language in ("en", "it", "ru") for digit in range(10)}
    assert all(m.kind == "digit" and m.text == str(m.digit) and m.split == "train" and not m.real for m in found)
