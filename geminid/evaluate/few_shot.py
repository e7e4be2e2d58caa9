"""Made-up words for pictures, learned from the prompt alone."""

from __future__ import annotations

import numpy as np

from geminid.corpus import documents
from geminid.evaluate.bench import Bench, Metrics, share
from geminid.evaluate.examples import Answer, FewShot

NUM_QUESTIONS = 200
NUM_EXAMPLES = 8


def measure(bench: Bench) -> tuple[Metrics, tuple[FewShot, ...]]:
    """few_shot: two pictures with a made-up word each, then a picture of one of the two in the held-out style.

    few_shot_exact: the word written freely. few_shot_shuffled: the third picture shows something else.
    """
    rng = bench.rng(11)
    metas, pixels = bench.memory.dataset.pictures, bench.memory.pixels
    train = bench.memory.pictures_by_concept()
    held_out = {metas[i].concept: i for i in bench.pictures("style")}
    both = sorted(set(train) & set(held_out))
    real = {name for names in bench.memory.dataset.names.values() for name in names.values()}
    asked, control, words, right, shown = [], [], [], [], []
    for _ in range(NUM_QUESTIONS):
        first, second, other = (both[k] for k in rng.choice(len(both), 3, replace=False))
        pair = documents.made_up_words(rng, 2, real)
        pictures = [int(rng.choice(train[concept])) for concept in (first, second)]
        which = int(rng.integers(2))
        query = held_out[(first, second)[which]]
        given = [(pixels[i], word) for i, word in zip(pictures, pair, strict=True)]
        asked.append(documents.few_shot(given, [(pixels[query], None)]))
        control.append(documents.few_shot(given, [(pixels[held_out[other]], None)]))
        words.append(pair)
        right.append(which)
        shown.append((pictures, query))
    trees = [bench.respondent.names(pair, end=False) for pair in words]  # more pictures may follow the word
    said = bench.respondent.likelihoods(asked, trees).argmax(1)
    elsewhere = bench.respondent.likelihoods(control, trees).argmax(1)
    written = bench.respondent.say(asked)
    metrics = {
        "few_shot": share(said == np.array(right)),
        "few_shot_n": NUM_QUESTIONS,
        "few_shot_exact": share([text == pair[k] for text, pair, k in zip(written, words, right, strict=True)]),
        "few_shot_shuffled": share(elsewhere == np.array(right)),
    }
    examples = []
    for k in range(NUM_EXAMPLES):
        pictures, query = shown[k]
        answer = Answer("und", words[k][said[k]], words[k][right[k]], bool(said[k] == right[k]))
        examples.append(FewShot(pixels[pictures], tuple(words[k]), pixels[query], answer))
    return metrics, tuple(examples)
