"""Phones of what is said, shared by all languages: what the audio encoder learns to spell."""

from __future__ import annotations

import numpy as np

# one letter of the International Phonetic Alphabet each; stress, length and diacritics are left out
ALPHABET = "abcdefhijklmnopqrstuvwxyzçðøœŋɐɑɒɔɕəɛɜɡɣɨɪɫɭɯɲɵɹɾʁʂʃʈʉʊʋʌʎʏʑʒʝɱβθχ"
NUM_PHONES = len(ALPHABET)
LEVELS = 4  # a word is cut into 1, 2, 3 and 4 parts
PARTS = tuple((k / level, (k + 1) / level) for level in range(1, LEVELS + 1) for k in range(level))  # begin, end
_IDS = {phone: k for k, phone in enumerate(ALPHABET)}


def phone_ids(ipa: str) -> list[int]:
    """Phones of a transcription in order; signs that are not in the alphabet are left out."""
    return [_IDS[sign] for sign in ipa if sign in _IDS]


def phones_by_part(phones: list[int], heard: float = 1.0) -> np.ndarray:
    """Which phones occur in which part of what is heard, bool [parts phones].

    heard: the share of the whole that the clip holds, from its beginning. A phone belongs to a part that holds at
    least half of it, phones taken as equally long (PHOC: Almazan et al. 2014, section 3.1).
    """
    kept = phones[: max(1, round(heard * len(phones)))]
    out = np.zeros((len(PARTS), NUM_PHONES), bool)
    for i, phone in enumerate(kept):
        begin, end = i / len(kept), (i + 1) / len(kept)
        for part, (first, last) in enumerate(PARTS):
            if min(end, last) - max(begin, first) >= 0.5 * (end - begin) - 1e-9:
                out[part, phone] = True
    return out
