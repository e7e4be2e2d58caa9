"""Drawings of (concept, style) pairs never seen, judged by an independent classifier; the codec on a held-out style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geminid.corpus import documents
from geminid.evaluate.bench import Bench, Metrics, share, shuffled
from geminid.evaluate.examples import Drawing, Reconstruction
from geminid.evaluate.judge import Judge, load_judge, train_judge
from geminid.evaluate.respondent import Respondent

CANDIDATES, TEMPERATURE, GUIDANCE = 16, 0.5, 3.0
NUM_DRAWINGS, NUM_RECONSTRUCTIONS = 32, 12
CODEC_BATCH = 128


def trained_judge(bench: Bench, path: Path) -> Judge:
    """The judge of a run: trained on every real core picture but those of the held-out style, then kept."""
    if not path.is_file():
        metas = bench.memory.dataset.pictures
        chosen = bench.pictures("train") + bench.pictures("pair")
        labels = np.array([bench.number[metas[i].concept] for i in chosen])
        recipe = bench.memory.recipe
        judge = train_judge(
            bench.memory.pixels[chosen], labels, len(bench.concepts), steps=recipe.judge_steps, seed=recipe.seed
        )
        judge.save(path)
    return load_judge(path)


def best_drawings(
    respondent: Respondent, prompts: Sequence[str], styles: Sequence[str], languages: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best and the first of CANDIDATES drawings for each prompt, uint8 [N S S 3] each.

    The model looks at its drawings, as at any picture: the best is the one that it likeliest calls by the prompt in
    one of `languages`. DALL-E (Ramesh et al. 2021) and Parti (Yu et al. 2022, arXiv 2206.10789) rank theirs by a second
    model.
    """
    asked = [k for k in range(len(prompts)) for _ in range(CANDIDATES)]
    drawn = respondent.draw(
        [documents.draw(prompts[k], styles[k]) for k in asked], [documents.draw(None, styles[k]) for k in asked],
        seed=seed, temperature=TEMPERATURE, guidance=GUIDANCE,
    )  # fmt: skip
    trees = [respondent.names([prompt]) for prompt in prompts]
    names = [trees[k] for k in asked]
    scores = np.stack(
        [
            respondent.likelihoods([documents.see(picture, language) for picture in drawn], names)
            for language in languages
        ]
    ).max(0)
    drawn = drawn.reshape(len(prompts), CANDIDATES, *drawn.shape[1:])
    best = scores.reshape(len(prompts), CANDIDATES).argmax(1)
    return drawn[np.arange(len(prompts)), best], drawn[:, 0]


def measure(bench: Bench, judge: Judge) -> tuple[Metrics, tuple[Drawing, ...]]:
    """drawing_recognised; the judge on real pictures of a style it never saw, and on what the codec keeps."""
    metas, pixels = bench.memory.dataset.pictures, bench.memory.pixels
    pairs = bench.pictures("pair")
    if not pairs:
        return {}, ()
    concepts, styles = [metas[i].concept for i in pairs], [metas[i].style for i in pairs]
    prompts = [bench.name(concept, "en") for concept in concepts]
    drawn, first = best_drawings(bench.respondent, prompts, styles, ("en",), bench.seed)
    verdicts = [bench.concepts[k] for k in judge.predict(drawn)]
    metrics = {
        "drawing_recognised": share([a == b for a, b in zip(verdicts, concepts, strict=True)]),
        "drawing_recognised_n": len(pairs),
        "drawing_recognised_first": share(judge.predict(first) == [bench.number[concept] for concept in concepts]),
        "drawing_shuffled": shuffled(verdicts, concepts, bench.rng(8)),
        "judge_real_style": judged(bench, judge, bench.pictures("style"), None),
        "judge_codec_pair": judged(bench, judge, pairs, bench.respondent.reconstruct(pixels[pairs])[1]),
    }
    chosen = sorted(bench.rng(9).permutation(len(pairs))[:NUM_DRAWINGS].tolist())
    examples = tuple(
        Drawing(drawn[k], prompts[k], concepts[k], styles[k], verdicts[k], pixels[pairs[k]]) for k in chosen
    )
    return metrics, examples


def judged(bench: Bench, judge: Judge, pictures: list[int], instead: np.ndarray | None) -> float:
    """Part of real pictures (or of others `instead` of them) that the judge recognises."""
    found = judge.predict(bench.memory.pixels[pictures] if instead is None else instead)
    metas = bench.memory.dataset.pictures
    return share([bench.concepts[k] == metas[i].concept for k, i in zip(found, pictures, strict=True)])


def measure_codec(bench: Bench) -> tuple[Metrics, tuple[Reconstruction, ...]]:
    """codec_psnr_db and codec_codes_used on every picture of the held-out style, core or not."""
    metas = bench.memory.dataset.pictures
    held_out = [i for i, meta in enumerate(metas) if meta.split == "style"]
    pixels = bench.memory.pixels[held_out]
    parts = [bench.respondent.reconstruct(pixels[k : k + CODEC_BATCH]) for k in range(0, len(pixels), CODEC_BATCH)]
    codes = np.concatenate([part[0] for part in parts])
    decoded = np.concatenate([part[1] for part in parts])
    psnr = peak_signal_to_noise(pixels, decoded)
    metrics = {
        "codec_psnr_db": float(psnr.mean()),
        "codec_psnr_db_n": len(pixels),
        "codec_codes_used": len(np.unique(codes)) / bench.memory.recipe.codec.num_codes,
    }
    chosen = bench.rng(10).permutation(len(pixels))[:NUM_RECONSTRUCTIONS]
    examples = tuple(
        Reconstruction(pixels[k], decoded[k], metas[held_out[k]].concept, metas[held_out[k]].style, float(psnr[k]))
        for k in sorted(chosen.tolist())
    )
    return metrics, examples


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB, float [N]. a, b: uint8 [N S S 3]; an error below that of rounding, 1/12, counts as 1/12."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2, (1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1 / 12))
