"""Naming pictures of a style that was never trained on, in every language."""

from __future__ import annotations

import numpy as np

from geminid.corpus import documents
from geminid.evaluate.baselines import pixel_1nn
from geminid.evaluate.bench import Bench, Metrics, share, shuffled
from geminid.evaluate.examples import Answer, NamedPicture

NUM_EXAMPLES = 24
SHOWN_LANGUAGES = 4


def measure(bench: Bench) -> tuple[Metrics, tuple[NamedPicture, ...]]:
    """naming_style_{en,en_exact,en_1nn,other_mean,...} and naming_style_<language> for each language."""
    held_out = bench.pictures("style")
    metas = bench.memory.dataset.pictures
    metrics: Metrics = {"num_concepts": len(held_out)}
    answers: dict[int, list[Answer]] = {i: [] for i in held_out}
    for language in bench.memory.recipe.data.languages:
        known = set(bench.known(language))
        asked = [i for i in held_out if metas[i].concept in known]
        if not asked:
            continue
        texts, tree = bench.candidates(language)
        questions = [documents.see(bench.memory.pixels[i], language) for i in asked]
        said = [texts[k] for k in bench.respondent.likelihoods(questions, tree).argmax(1)]
        expected = [bench.name(metas[i].concept, language) for i in asked]
        right = [a == b for a, b in zip(said, expected, strict=True)]
        metrics[f"naming_style_{language}"] = share(right)
        for i, text, name in zip(asked, said, expected, strict=True):
            answers[i].append(Answer(language, text, name, text == name))
        if language == "en":
            written = bench.respondent.say(questions)
            exact = [a == b for a, b in zip(written, expected, strict=True)]
            metrics["naming_style_en_exact"] = share(exact)
            metrics["naming_style_en_shuffled"] = shuffled(said, expected, bench.rng(1))
            metrics["naming_style_en_n"] = len(asked)
            metrics["naming_style_en_1nn"] = nearest(bench, asked)
    measured = (metrics.get(f"naming_style_{k}") for k in bench.memory.recipe.data.languages if k != "en")
    others = [value for value in measured if value is not None]
    metrics["naming_style_other_mean"] = share(others)
    metrics["naming_style_other_mean_n"] = len(held_out) * len(others)
    return metrics, examples(bench, answers)


def nearest(bench: Bench, asked: list[int]) -> float:
    """Pixel 1-nearest-neighbour among the training pictures of the same concepts."""
    metas, pixels = bench.memory.dataset.pictures, bench.memory.pixels
    train = bench.pictures("train")

    def labels(indices: list[int]) -> np.ndarray:
        return np.array([bench.number[metas[i].concept] for i in indices])

    return pixel_1nn(pixels[train], labels(train), pixels[asked], labels(asked)).accuracy


def examples(bench: Bench, answers: dict[int, list[Answer]]) -> tuple[NamedPicture, ...]:
    chosen = sorted(bench.rng(2).permutation(list(answers))[:NUM_EXAMPLES])
    metas = bench.memory.dataset.pictures
    return tuple(
        NamedPicture(bench.memory.pixels[i], metas[i].concept, metas[i].style, tuple(answers[int(i)][:SHOWN_LANGUAGES]))
        for i in chosen
    )
