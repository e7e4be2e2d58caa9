"""16 kHz samples -> 128-bin log-mel (USM, Zhang et al. 2023; HTK mel scale as in Gemma 3n's front end)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from geminid.config import AudioConfig

LOG_FLOOR = 1e-3  # added to the mel magnitudes before the logarithm


def mel_from_hz(hz: np.ndarray | float) -> np.ndarray:
    """HTK mel scale: 2595 log10(1 + f / 700)."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


@lru_cache
def mel_filters(num_mels: int, fft_size: int, sample_rate: int) -> np.ndarray:
    """Triangular filters, float32 [fft_size/2 + 1, num_mels], 60 Hz to Nyquist, peak 1."""
    edges_mel = np.linspace(mel_from_hz(60.0), mel_from_hz(sample_rate / 2), num_mels + 2)
    edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    hz = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(samples: np.ndarray, config: AudioConfig) -> np.ndarray:
    """Log-mel features.

    samples: int16 [n] (or float in [-1, 1]), mono, `config.sample_rate` Hz.
    Returns float32 [frames, num_mels], one frame per hop, cut at `config.max_s`.
    """
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"audio must be one non-empty channel, got shape {samples.shape}; mix it down to mono first")
    scale = 32768.0 if samples.dtype == np.int16 else 1.0
    signal = samples.astype(np.float32) / scale
    window = round(config.window_s * config.sample_rate)
    hop = round(config.hop_s * config.sample_rate)
    fft_size = 1 << (window - 1).bit_length()
    signal = np.pad(signal, (window // 2, window))
    num_frames = min(1 + (len(signal) - window) // hop, config.num_frames)
    frames = np.lib.stride_tricks.sliding_window_view(signal, window)[::hop][:num_frames]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window, dtype=np.float32) + 0.5) / window)
    magnitude = np.abs(np.fft.rfft(frames * hann, fft_size)).astype(np.float32)
    mel = magnitude @ mel_filters(config.num_mels, fft_size, config.sample_rate)
    return np.log(mel + LOG_FLOOR).astype(np.float32)
