"""Naming animations of concepts trained on as still pictures, and questions about the order of pictures."""

from __future__ import annotations

import itertools

import numpy as np

from geminid.batches.mixture import VIDEO_FRAMES, order_times, pick_frames
from geminid.corpus import documents
from geminid.evaluate.bench import Bench, Metrics, share, shuffled
from geminid.evaluate.examples import Animation, Answer, OrderQuestion
from geminid.tokens.ids import time_tag

NUM_ORDER_QUESTIONS = 150
NUM_EXAMPLES = 8


def measure(bench: Bench) -> tuple[Metrics, tuple[Animation, ...]]:
    """watching_unseen with a middle frame, a bag of frames and shuffled answers beside it."""
    dataset = bench.memory.dataset
    unseen = [i for i, meta in enumerate(dataset.animations) if meta.split == "unseen"]
    if not unseen:
        return {}, ()
    metas = [dataset.animations[i] for i in unseen]
    videos = [dataset.animation(i) for i in unseen]
    texts, tree = bench.candidates("en")
    expected = [bench.name(meta.concept, "en") for meta in metas]
    questions, singles = [], []
    for frames, meta in zip(videos, metas, strict=True):
        kept, times = pick_frames(frames, meta.times_s, VIDEO_FRAMES)
        questions.append(documents.watch(kept, [time_tag(t) for t in times], "en"))
        singles += [documents.see(frame, "en") for frame in kept]
    said = [texts[k] for k in bench.respondent.likelihoods(questions, tree).argmax(1)]
    each = bench.respondent.likelihoods(singles, tree).reshape(len(unseen), VIDEO_FRAMES, -1)

    def accuracy(choice: np.ndarray) -> float:
        return share([texts[k] == name for k, name in zip(choice, expected, strict=True)])

    metrics = {
        "watching_unseen": share([a == b for a, b in zip(said, expected, strict=True)]),
        "watching_unseen_n": len(unseen),
        "watching_middle_frame": accuracy(each[:, VIDEO_FRAMES // 2].argmax(1)),
        "watching_bag_of_frames": accuracy(each.mean(1).argmax(1)),
        "watching_shuffled": shuffled(said, expected, bench.rng(6)),
    }
    examples = tuple(
        Animation(frames, meta.times_s, meta.concept, Answer("en", text, name, text == name))
        for frames, meta, text, name in list(zip(videos, metas, said, expected, strict=True))[:NUM_EXAMPLES]
    )
    return metrics, examples


def measure_order(bench: Bench) -> tuple[Metrics, tuple[OrderQuestion, ...]]:
    """order: which of three pictures of the held-out style came first, second, last; chance is a third.

    The bag of frames hears the same question about all six orders of the same pictures and averages.
    """
    rng = bench.rng(7)
    pictures = bench.pictures("style")
    metas = bench.memory.dataset.pictures
    texts, tree = bench.candidates("en")
    place = {concept: k for k, concept in enumerate(bench.known("en"))}
    questions, shown, wanted, asked = [], [], [], []
    for number in range(NUM_ORDER_QUESTIONS):
        chosen = [pictures[k] for k in rng.choice(len(pictures), 3, replace=False)]
        which = number % 3
        times = order_times(rng)
        for order in itertools.permutations(range(3)):  # the first is the true one
            frames = [bench.memory.pixels[chosen[k]] for k in order]
            questions.append(documents.order(frames, times, documents.ORDER_QUESTIONS[which], "en"))
        shown.append([place[metas[i].concept] for i in chosen])
        wanted.append(which)
        asked.append(chosen)
    scores = bench.respondent.likelihoods(questions, tree).reshape(NUM_ORDER_QUESTIONS, 6, -1)
    among = np.take_along_axis(scores, np.array(shown)[:, None, :], 2)
    said = among[:, 0].argmax(1)
    metrics = {
        "order": share(said == np.array(wanted)),
        "order_n": NUM_ORDER_QUESTIONS,
        "order_bag_of_frames": share(among.mean(1).argmax(1) == np.array(wanted)),
        "order_chance": 1 / 3,
    }
    examples = []
    for number in range(NUM_EXAMPLES):
        names = [texts[k] for k in shown[number]]
        answer = Answer("en", names[said[number]], names[wanted[number]], bool(said[number] == wanted[number]))
        examples.append(
            OrderQuestion(bench.memory.pixels[asked[number]], documents.ORDER_QUESTIONS[wanted[number]], answer)
        )
    return metrics, tuple(examples)
