"""Synthetic speech: espeak-ng called in-process, one fresh library per utterance.

espeak-ng keeps flutter phase, resonator and random state between utterances and offers no way to
reset them. Loading the library anew for each one (2 ms) makes `speak` a pure function.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import espeakng_loader
import numpy as np

from geminid.config import DataConfig
from geminid.corpus.recordings import SAMPLE_RATE, fits, resample, trim
from geminid.corpus.splits import fraction
from geminid.corpus.store import ClipMeta

# speak_lib.h of espeak-ng 1.52
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_IPA = 2
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_ALIASES = {"zh": "cmn", "no": "nb", "nn": "nb"}  # CLDR language -> espeak-ng's

# Intelligible variants: the right one of 60 real recordings (fr, es, ru) is nearest to a variant's rendering, by
# time-warped cepstra, for at least 27% of the words (chance 1.7%). Robots, whispers and near twins are left out.
VARIANTS = (
    *("f1", "f2", "f3", "f4", "f5", "Andrea", "Annie", "anika", "belinda", "grandma", "steph", "steph3"),
    *("Denis", "Diogo", "ed", "edward2", "Gene", "grandpa", "klatt4", "max", "michel", "miguel", "pablo", "pedro"),
    *("quincy", "sandro"),
)
DIGIT_VOICES = 20
_RATES_WPM = (120, 200)
_PITCHES = (20, 80)
_PITCH_RANGES = (20, 80)


class Synthesiser:
    """espeak-ng as a pure function of its arguments. Not safe to share between threads."""

    @cached_property
    def _voice_files(self) -> dict[str, str]:
        """Language -> the voice file's path below `lang`: named so, espeak-ng skips a scan of all files."""
        root = Path(espeakng_loader.get_data_path()) / "lang"
        files = sorted(p for p in root.rglob("*") if p.is_file())
        return {p.name: p.relative_to(root).as_posix() for p in files}

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that can be spoken, sorted."""
        return tuple(sorted({*self._voice_files, *_ALIASES}))

    def speak(self, text: str, language: str, variant: str, rate_wpm: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Text -> int16 [n], mono, 16 kHz, trimmed and at -3 dBFS; empty if nothing is pronounced.

        Args:
            language: CLDR code ("fr"); `languages` lists them.
            variant: espeak-ng voice variant ("f2"); `VARIANTS` lists the intelligible ones.
            rate_wpm: words per minute, 80 to 450.
            pitch: 0 to 100, 50 is the variant's own.
            pitch_range: 0 (monotone) to 100, 50 is the variant's own.

        Raises ValueError for an unknown language or variant.
        """
        file = self._voice_files.get(_ALIASES.get(language, language))
        if file is None:
            raise ValueError(f"espeak-ng does not speak {language!r}; it speaks {', '.join(self.languages)}")
        data = Path(espeakng_loader.get_data_path())
        if not (data / "voices" / "!v" / variant).is_file():
            raise ValueError(f"espeak-ng has no voice variant {variant!r}; use one of {', '.join(VARIANTS)}")
        parameters = {_RATE: rate_wpm, _VOLUME: 100, _PITCH: pitch, _RANGE: pitch_range, _WORD_GAP: 0}
        samples, rate = _utter(text, f"{file}+{variant}", parameters, str(data))
        return trim(resample(samples, rate)) if len(samples) else samples

    def phones(self, texts: Sequence[str], language: str) -> list[str]:
        """How each text is pronounced, in the International Phonetic Alphabet; "" in a language it does not speak."""
        file = self._voice_files.get(_ALIASES.get(language, language))
        if file is None:
            return [""] * len(texts)
        with _library(file, str(espeakng_loader.get_data_path())) as (library, _):
            library.espeak_TextToPhonemes.restype = ctypes.c_char_p
            return [_pronounce(library, text) for text in texts]


@contextlib.contextmanager
def _library(voice: str, data: str) -> Iterator[tuple[ctypes.CDLL, int]]:
    """A freshly loaded library that speaks with `voice`, and its rate in Hz."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), 0)
        if rate <= 0:
            raise ValueError(f"espeak-ng cannot read its data at {data}: reinstall espeakng-loader")
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: reinstall espeakng-loader")
        yield library, rate
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _pronounce(library: ctypes.CDLL, text: str) -> str:
    """The clauses of a text in IPA, a space between them."""
    rest, clauses = ctypes.c_char_p(text.encode()), []
    while rest.value is not None:  # each call reads one clause and moves the pointer on, at the end to null
        clauses.append(library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARS_UTF8, _IPA).decode())
    return re.sub(r"\([a-z0-9-]+\)", "", " ".join(clause for clause in clauses if clause))  # "(en)": another language


def _utter(text: str, voice: str, parameters: Mapping[int, int], data: str) -> tuple[np.ndarray, int]:
    """One utterance by a freshly loaded library -> int16 [m] and its rate in Hz."""
    pieces: list[bytes] = []

    @_CALLBACK
    def collect(wave, count, events):
        if wave and count > 0:
            pieces.append(ctypes.string_at(wave, 2 * count))
        return 0  # go on

    with _library(voice, data) as (library, rate):
        library.espeak_ng_SetRandSeed(1)
        library.espeak_SetSynthCallback(collect)
        for parameter, value in parameters.items():
            library.espeak_SetParameter(parameter, int(value), 0)
        utf8 = text.encode() + b"\0"
        library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 1, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
    return np.frombuffer(b"".join(pieces), np.int16), rate


def _say(synthesiser: Synthesiser, text: str, language: str, variant: str, config: DataConfig, *key: str) -> np.ndarray:
    """One rendering whose rate, pitch and range are drawn by hash; spoken faster if it would be too long."""

    def draw(name: str, low: int, high: int) -> int:
        return low + int(fraction(config.seed, "espeak", name, language, variant, *key) * (high - low + 1))

    rate = draw("rate", *_RATES_WPM)
    manner = (draw("pitch", *_PITCHES), draw("range", *_PITCH_RANGES))
    samples = synthesiser.speak(text, language, variant, rate, *manner)
    if len(samples) > config.clip_max_s * SAMPLE_RATE:
        samples = synthesiser.speak(text, language, variant, _RATES_WPM[1], *manner)
    return samples


def _voices(seed: int, count: int, *key: str) -> list[str]:
    """`count` variants in an order drawn by hash, each once before any comes again."""
    order = sorted(VARIANTS, key=lambda variant: fraction(seed, "variant", *key, variant))
    return [order[i % len(order)] for i in range(count)]


def _alternatives(name: str | None, descriptions: Sequence[str]) -> list[str]:
    texts = {}
    for text in (*descriptions, *([name] if name else [])):
        text = text.strip()
        if text:
            texts.setdefault(text.rstrip(".。").casefold(), text)
    return list(texts.values())


def synthetic_clips(
    names: Mapping[str, Mapping[str, str]],
    config: DataConfig,
    descriptions: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[tuple[ClipMeta, np.ndarray]]:
    """`config.synthetic_voices` renderings of each concept in each language of the config.

    `names` is language -> concept -> name; `descriptions` language -> concept -> what the real
    recordings say. The descriptions are spoken first, each once, then the name, then all again.
    Yields metadata (kind "name", split "train") and int16 [n] at 16 kHz; `skipped` counts "too long" and "silent".
    """
    skipped = Counter() if skipped is None else skipped
    synthesiser = Synthesiser()
    for language in sorted(config.languages):
        spoken = (descriptions or {}).get(language, {})
        known = names.get(language, {})
        for concept in sorted({*known, *spoken}):
            texts = _alternatives(known.get(concept), spoken.get(concept, ()))
            if not texts:
                continue
            for i, variant in enumerate(_voices(config.seed, config.synthetic_voices, language, concept)):
                text = texts[i % len(texts)]
                samples = _say(synthesiser, text, language, variant, config, concept, str(i))
                if fits(samples, config, skipped):
                    yield _meta("name", language, text, variant, len(samples), concept=concept), samples


def synthetic_digits(config: DataConfig, skipped: Counter[str] | None = None) -> Iterator[tuple[ClipMeta, np.ndarray]]:
    """Digits 0 to 9 by 20 voices in each language of the config. Yields as `synthetic_clips` does, kind "digit"."""
    skipped = Counter() if skipped is None else skipped
    synthesiser = Synthesiser()
    for language in sorted({*config.languages, *config.digit_languages}):
        for digit in range(10):
            text = str(digit)
            for i, variant in enumerate(_voices(config.seed, DIGIT_VOICES, language, text)):
                samples = _say(synthesiser, text, language, variant, config, text, str(i))
                if fits(samples, config, skipped):
                    yield _meta("digit", language, text, variant, len(samples), digit=digit), samples


def _meta(
    kind: str,
    language: str,
    text: str,
    variant: str,
    num_samples: int,
    concept: str | None = None,
    digit: int | None = None,
) -> ClipMeta:
    return ClipMeta(
        kind=kind,
        concept=concept,
        digit=digit,
        language=language,
        text=text,
        voice=f"espeak-{variant}",
        real=False,
        split="train",
        num_samples=num_samples,
    )
