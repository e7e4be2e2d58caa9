"""Log-mel: against the HTK formula, a direct Fourier sum and what silence and shifts must give."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid.config import AudioConfig
from geminid.tokens.audio import LOG_FLOOR, log_mel, mel_filters, mel_from_hz

CONFIG = AudioConfig()
RATE = CONFIG.sample_rate
HOP = 160  # 10 ms
WINDOW = 400  # 25 ms
LOWEST_HZ = 60.0


def tone(hz: float, seconds: float = 0.4, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3000, count).astype(np.int16)


def htk(hz: float) -> float:
    """The form of the HTK book, in natural logarithms: 1127 ln(1 + f / 700)."""
    return 1127.01048 * math.log(1 + hz / 700)


def centres_hz() -> np.ndarray:
    """Centre frequency of every mel bin, by bisection of the HTK formula."""
    low, high = htk(LOWEST_HZ), htk(RATE / 2)
    return np.array([hz_of(low + (high - low) * (k + 1) / (CONFIG.num_mels + 1)) for k in range(CONFIG.num_mels)])


def hz_of(mel: float) -> float:
    low, high = 0.0, RATE / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if htk(middle) < mel else (low, middle)
    return low


def test_the_scale_has_1000_mel_at_1000_hz():
    assert mel_from_hz(1000.0) == pytest.approx(1000.0, abs=0.1)
    for hz in (0.0, 60.0, 440.0, 8000.0):
        assert mel_from_hz(hz) == pytest.approx(htk(hz), rel=1e-4)


@pytest.mark.parametrize("hz", [250, 440, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6500, 7500])
def test_a_tone_peaks_at_its_own_bin(hz):
    centres = centres_hz()
    middle = log_mel(tone(hz), CONFIG)[10:30].mean(0)
    nearest = int(np.abs(centres - hz).argmin())
    spectral_bin_hz = RATE / 512
    width_hz = max(spectral_bin_hz, centres[nearest] - centres[nearest - 1])
    assert abs(centres[middle.argmax()] - hz) <= width_hz


@pytest.mark.parametrize("bin_", range(70, 128, 6))
def test_a_tone_at_the_centre_of_a_wide_bin_peaks_there_exactly(bin_):
    middle = log_mel(tone(centres_hz()[bin_]), CONFIG)[10:30].mean(0)
    assert middle.argmax() == bin_


def test_filters_are_triangles_that_share_their_feet():
    filters = mel_filters(CONFIG.num_mels, 2**14, RATE)
    hz = np.linspace(0, RATE / 2, 2**13 + 1)
    centres = centres_hz()
    assert hz[filters.argmax(0)] == pytest.approx(centres, abs=1.0)
    assert filters.max(0) == pytest.approx(np.ones(CONFIG.num_mels), abs=0.05)
    inside = (hz >= centres[0]) & (hz <= centres[-1])
    assert filters[inside].sum(1) == pytest.approx(np.ones(inside.sum()), abs=1e-4)
    assert not filters[hz < LOWEST_HZ].any()


def test_no_filter_is_empty_at_the_size_in_use():
    assert (mel_filters(CONFIG.num_mels, 512, RATE).max(0) > 0).all()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_silence_is_the_floor(dtype):
    features = log_mel(np.zeros(4000, dtype), CONFIG)
    assert features == pytest.approx(np.full(features.shape, math.log(LOG_FLOOR)), abs=1e-5)


def test_int16_is_the_same_sound_as_floats():
    samples = noise(5000)
    assert log_mel(samples, CONFIG) == pytest.approx(log_mel(samples / 32768.0, CONFIG), abs=1e-4)


def test_a_frame_is_the_fourier_sum_of_its_window():
    samples = tone(900, 0.2) + tone(3100, 0.2, 0.1) + noise(3200) / 32768
    k = 7
    begin = k * HOP - WINDOW // 2  # frames are centred on multiples of the hop
    hann = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW) ** 2
    part = samples[begin : begin + WINDOW] * hann
    turns = np.outer(np.arange(257), np.arange(WINDOW)) / 512
    spectrum = np.hypot((part * np.cos(2 * np.pi * turns)).sum(1), (part * np.sin(2 * np.pi * turns)).sum(1))
    expected = np.log(spectrum @ mel_filters(CONFIG.num_mels, 512, RATE) + 1e-3)
    assert log_mel(samples, CONFIG)[k] == pytest.approx(expected, abs=1e-3)


@given(st.integers(1, 60_000))
def test_one_frame_a_hop_until_the_cut(count):
    features = log_mel(np.zeros(count, np.int16), CONFIG)
    expected = len(range(-WINDOW // 2, count + 1, HOP))  # windows that start no later than the sound ends
    assert features.shape == (min(expected, CONFIG.num_frames), CONFIG.num_mels)
    assert features.dtype == np.float32
    assert abs(expected - count / HOP) <= 2.5


def test_frames_move_with_the_sound():
    samples = noise(9000)
    shifted = np.concatenate([np.zeros(5 * HOP, np.int16), samples])
    assert log_mel(shifted, CONFIG)[9:50] == pytest.approx(log_mel(samples, CONFIG)[4:45], abs=1e-4)


def test_the_cut_only_cuts():
    samples = noise(16_000)
    short = dataclasses.replace(CONFIG, max_s=0.3)
    # a matrix product of other height may add in another order
    assert log_mel(samples, short) == pytest.approx(log_mel(samples, CONFIG)[:30], abs=1e-5)


@pytest.mark.parametrize("shape", [(0,), (100, 2), (1, 100), ()])
def test_what_is_no_channel_is_refused(shape):
    with pytest.raises(ValueError, match="one non-empty channel") as error:
        log_mel(np.zeros(shape, np.int16), CONFIG)
    assert str(shape) in str(error.value)
    assert "\n" not in str(error.value)
