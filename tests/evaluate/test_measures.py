"""Targets are judged honestly, and each number finds the measure that it belongs to."""

from __future__ import annotations

import pytest

from geminid.evaluate.measures import Bar, rows, wilson, written


def row(metrics: dict, key: str):
    return next(row for _, group in rows(metrics) for row in group if row.measure.key == key)


def references(metrics: dict, key: str) -> dict[str, float]:
    return {reference.label: reference.value for reference in row(metrics, key).references}


@pytest.mark.parametrize(
    "key, metrics, expected",
    [
        ("naming_style_en", {"naming_style_en": 0.65, "naming_style_en_1nn": 0.62}, [True, True]),
        ("naming_style_en", {"naming_style_en": 0.66, "naming_style_en_1nn": 0.64}, [True, False]),
        ("naming_style_en", {"naming_style_en": 0.6499, "naming_style_en_1nn": 0.1}, [False, True]),
        ("naming_style_en", {"naming_style_en": 0.7}, [True, None]),
        ("naming_style_en", {}, [None, None]),
        ("naming_style_en", {"naming_style_en": True}, [None, None]),
        (
            "hearing_synthetic_to_real",
            {"hearing_synthetic_to_real": 0.05, "hearing_chance": 0.01, "hearing_baseline": 0.05},
            [True, False],
        ),
        (
            "hearing_synthetic_to_real",
            {"hearing_synthetic_to_real": 0.0499, "hearing_chance": 0.01, "hearing_baseline": 0.04},
            [False, True],
        ),
        ("padding_fraction", {"padding_fraction": 0.03}, [True]),
        ("padding_fraction", {"padding_fraction": 0.031}, [False]),
        ("codec_psnr_db", {"codec_psnr_db": 21.99}, [False]),
        ("num_params", {"num_params": 3}, []),
    ],
)
def test_targets(key, metrics, expected):
    assert [reached for _, reached in row(metrics, key).verdicts] == expected


def test_one_missed_part_is_a_miss_even_if_another_is_unknown():
    assert Bar("", at_least=0.5, over="other").reached(0.4, {}) is False
    assert Bar("", at_least=0.5, over="other").reached(0.6, {}) is None


def test_numbers_stand_beside_their_own_measure():
    metrics = {
        "num_concepts": 200,
        "naming_style_en": 0.7,
        "naming_style_en_shuffled": 0.004,
        "naming_style_en_exact": 0.5,
        "naming_style_en_exact_shuffled": 0.003,
        "naming_style_en_1nn": 0.6,
        "naming_style_en_n": 200,
        "order": 0.8,
        "order_bag_of_frames": 0.4,
        "order_chance": 0.33,
        "order_some_more": 0.1,
        "hearing_synthetic_to_real": 0.2,
        "hearing_chance": 0.01,
    }
    assert references(metrics, "naming_style_en") == {"pixel 1-NN": 0.6, "chance": 1 / 200, "shuffled control": 0.004}
    assert references(metrics, "naming_style_en_exact") == {"pixel 1-NN": 0.6, "shuffled control": 0.003}
    assert references(metrics, "order") == {"bag of frames": 0.4, "some more": 0.1, "chance": 0.33}
    assert references(metrics, "hearing_synthetic_to_real") == {"chance": 0.01}
    assert row(metrics, "naming_style_en").num_questions == 200


def test_wilson_interval():
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(1.0, 20)[1] == 1.0


def test_values_are_written_for_readers():
    assert written(0.6543, "%") == "65.4%"
    assert written(1 / 178, "%") == "0.56%"
    assert written(0.0, "%") == "0.0%"
    assert written(3_412_345, "count") == "3,412,345"
    assert written(1500, "s") == "25.0 min"
    assert written(12.34, "s") == "12.3 s"
    assert written(22.5, "dB") == "22.50 dB"
    assert written(None, "dB") == "not measured"
