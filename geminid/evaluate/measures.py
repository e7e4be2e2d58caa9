"""What the report says about each metric: its words, what it stands beside, and the bar it has to reach.

`metrics.json` is one flat object. Beside a metric K stand all metrics called K_<reference>, such as
K_chance, K_baseline, K_1nn, K_bag_of_frames, K_middle_frame, K_shuffled (the control: the same questions
asked with another picture or sound); K_n is the number of questions behind K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REFERENCE_LABELS = {
    "1nn": "pixel 1-NN",
    "baseline": "baseline",
    "chance": "chance",
    "shuffled": "shuffled control",
    "bag_of_frames": "bag of frames",
    "middle_frame": "middle frame",
    "first": "without choosing",
}


@dataclass(frozen=True)
class Bar:
    """What a metric has to reach: a number, a multiple of a reference, or a margin over one."""

    text: str
    at_least: float | None = None
    at_most: float | None = None
    over: str | None = None  # name of another metric that must be exceeded ...
    margin: float = 0.0  # ... by at least this much
    times: tuple[float, str] | None = None  # at least this many times that metric

    def reached(self, value: float, metrics: Mapping[str, float]) -> bool | None:
        """None: a metric that the bar refers to was not measured."""
        verdicts: list[bool | None] = []
        if self.at_least is not None:
            verdicts.append(value >= self.at_least)
        if self.at_most is not None:
            verdicts.append(value <= self.at_most)
        if self.times is not None:
            factor, other = self.times
            verdicts.append(value >= factor * metrics[other] if other in metrics else None)
        if self.over is not None:
            known = self.over in metrics
            # 1e-9: 0.68 - 0.65 is below 0.03 in binary
            ahead = value - metrics[self.over] if known else 0.0
            verdicts.append((ahead > 0 and ahead >= self.margin - 1e-9) if known else None)
        if False in verdicts:
            return False
        return None if None in verdicts else True


@dataclass(frozen=True)
class Measure:
    """One row of the report's results."""

    key: str
    title: str
    how: str  # one sentence: what was asked, of what
    bars: tuple[Bar, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)  # further metric -> label
    chance: float | str | None = None  # a number, or the metric whose inverse it is
    unit: str = "%"


GROUPS: tuple[tuple[str, tuple[Measure, ...]], ...] = (
    (
        "Seeing",
        (
            Measure(
                "naming_style_en",
                "Names a held-out style, in English",
                "The right name has the highest likelihood under the decoder among the names of all concepts."
                " No picture of this style was ever trained on.",
                (
                    Bar("at least 65%", at_least=0.65),
                    Bar("3 points over pixel 1-NN", over="naming_style_en_1nn", margin=0.03),
                ),
                chance="num_concepts",
            ),
            Measure(
                "naming_style_en_exact",
                "The same, written freely",
                "What the decoder writes of its own is the right name, word for word.",
                (Bar("at least 45%", at_least=0.45),),
                {"naming_style_en_1nn": "pixel 1-NN"},
            ),
            Measure(
                "naming_style_other_mean",
                "The same, in the other languages",
                "Highest likelihood among all names of the language; mean over the languages.",
                (Bar("at least 50%", at_least=0.50),),
                {"naming_style_en_1nn": "pixel 1-NN"},
                chance="num_concepts",
            ),
        ),
    ),
    (
        "Hearing",
        (
            Measure(
                "hearing_synthetic_to_real",
                "Names real recordings of words heard only from synthetic voices",
                "Every real recording of these concepts, in every language, was kept out of training.",
                (
                    Bar("5 times chance", times=(5.0, "hearing_chance")),
                    Bar("over its baseline", over="hearing_baseline"),
                ),
                {
                    "hearing_baseline": "1-NN, time warping",
                    "hearing_chance": "chance",
                    "hearing_shuffled": "shuffled control",
                },
            ),
            Measure(
                "hearing_normal",
                "Names real recordings, normal split",
                "Held-out recordings of concepts whose other recordings were trained on.",
                (),
                {"hearing_chance": "chance"},
            ),
            Measure(
                "digits_unseen_speakers",
                "Names digits spoken by unseen speakers",
                "One studio voice a language, never heard in training.",
                (Bar("at least 50%", at_least=0.50),),
                {"digits_baseline": "1-NN, time warping", "digits_shuffled": "shuffled control"},
                chance=0.1,
            ),
        ),
    ),
    (
        "Watching",
        (
            Measure(
                "watching_unseen",
                "Names animations of concepts seen only as still pictures",
                "The frames go in as a video, each with its time.",
                (Bar("at least 50%", at_least=0.50),),
                {
                    "watching_middle_frame": "middle frame",
                    "watching_bag_of_frames": "bag of frames",
                    "watching_shuffled": "shuffled control",
                },
                chance="num_concepts",
            ),
            Measure(
                "order",
                "Answers questions about order",
                "Several pictures in a row, then: what came first, second, last?",
                (
                    Bar("at least 70%", at_least=0.70),
                    Bar("over a bag of frames", over="order_bag_of_frames"),
                ),
            ),
        ),
    ),
    (
        "Drawing",
        (
            Measure(
                "drawing_recognised",
                "Drawings that the judge recognises",
                "Drawings of (concept, style) pairs never seen: of several, the one that the model itself calls"
                " likeliest by the prompt. The judge is a classifier of its own, trained on real pictures only; its"
                " first guess counts.",
                (Bar("at least 50%", at_least=0.50),),
                {"drawing_shuffled": "shuffled control"},
                chance="num_concepts",
            ),
            Measure(
                "codec_psnr_db",
                "Image codec, held-out style",
                "Peak signal-to-noise ratio of pictures of a style that the codec never saw.",
                (Bar("at least 22 dB", at_least=22.0),),
                unit="dB",
            ),
            Measure(
                "codec_codes_used",
                "Image codes in use",
                "Part of the codes that occur at least once.",
                (Bar("at least 80%", at_least=0.80),),
            ),
        ),
    ),
    (
        "Learning in the prompt",
        (
            Measure(
                "few_shot",
                "Uses made-up words from the prompt",
                "Two pictures, each with a made-up word, then a third picture of one of the two.",
                (Bar("at least 80%", at_least=0.80),),
                chance=0.5,
            ),
        ),
    ),
    (
        "Cost",
        (
            Measure("num_concepts", "Concepts", "Everything above is measured on these.",
                    (Bar("at least 170", at_least=170),), unit="count"),
            Measure("padding_fraction", "Padding", "Positions of the packed rows that hold nothing.",
                    (Bar("at most 3%", at_most=0.03),)),
            Measure("wall_s", "Wall-clock time", "From start to this page, downloads not counted.",
                    (Bar("at most 30 min", at_most=1800),), unit="s"),
            Measure("peak_rss_gib", "Peak resident memory", "Of all processes together, at most.",
                    (Bar("at most 8 GiB", at_most=8.0),), unit="GiB"),
            Measure("num_params", "Parameters", "Decoder, encoders and codec together.", unit="count"),
            Measure("tokens", "Positions trained on", "In the joint stage.", unit="count"),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Another number beside a value."""

    label: str
    value: float


@dataclass(frozen=True)
class Row:
    """A measure with its numbers."""

    measure: Measure
    value: float | None  # None: not measured
    references: tuple[Reference, ...]
    verdicts: tuple[tuple[str, bool | None], ...]  # bar's text, reached (None: cannot be said)
    num_questions: int | None
    interval: tuple[float, float] | None  # 95%, Wilson


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Every group with its rows, measured or not."""
    numbers = {key: float(value) for key, value in metrics.items() if is_number(value)}
    return [(title, [_row(measure, numbers) for measure in group]) for title, group in GROUPS]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _row(measure: Measure, numbers: Mapping[str, float]) -> Row:
    value = numbers.get(measure.key)
    verdicts = tuple((bar.text, None if value is None else bar.reached(value, numbers)) for bar in measure.bars)
    num_questions = numbers.get(f"{measure.key}_n")
    interval = None
    if value is not None and num_questions and measure.unit == "%" and 0 <= value <= 1:
        interval = wilson(value, int(num_questions))
    return Row(
        measure, value, _references(measure, numbers), verdicts,
        None if num_questions is None else int(num_questions), interval,
    )  # fmt: skip


def _references(measure: Measure, numbers: Mapping[str, float]) -> tuple[Reference, ...]:
    named = dict(measure.references)
    owners = {other.key for _, group in GROUPS for other in group}
    for key in numbers:
        suffix = key.removeprefix(measure.key + "_")
        claimed = key in owners or any(
            key.startswith(owner + "_") and len(owner) > len(measure.key) for owner in owners
        )
        if suffix != key and suffix != "n" and not claimed:
            named.setdefault(key, REFERENCE_LABELS.get(suffix, suffix.replace("_", " ")))
    found = [Reference(label, numbers[key]) for key, label in named.items() if key in numbers]
    if not any(reference.label == "chance" for reference in found):
        if isinstance(measure.chance, float):
            found.append(Reference("chance", measure.chance))
        elif measure.chance is not None and numbers.get(measure.chance, 0) > 0:
            found.append(Reference("chance", 1 / numbers[measure.chance]))
    order = ("chance", "shuffled control")  # what was learned from nothing comes last
    return tuple(sorted(found, key=lambda r: order.index(r.label) if r.label in order else -1))


def wilson(fraction: float, num_questions: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927)."""
    n = num_questions
    middle = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def written(value: float | None, unit: str) -> str:
    """A value as the report writes it."""
    if value is None:
        return "not measured"
    if unit == "%":
        # small shares keep two figures: chance among 178 is 0.56%
        return f"{100 * value:.1f}%" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2g}%"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "s":
        return f"{value / 60:.1f} min" if value >= 90 else f"{value:.1f} s"
    return f"{value:.2f} {unit}"
