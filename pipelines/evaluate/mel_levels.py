"""Levels of audio over time and mel bands: what the small spectrograms of a report show."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Samples = np.ndarray[Any, np.dtype[np.float32]]
WINDOW_SECONDS = 0.0464
HIGHEST_HZ = 16000.0


def compute_mel_levels(samples: Samples, rate_hz: int, *, bands: int, frames: int) -> Samples:
    """Level in dB of each mel band over time, [bands, frames], low frequencies first; 0 dB is a full-scale sine."""
    window = 2 ** round(np.log2(rate_hz * WINDOW_SECONDS))
    padded = np.pad(np.nan_to_num(samples.astype(np.float32)), window // 2)
    starts = np.linspace(0, len(padded) - window, frames).astype(int)
    hann = np.hanning(window).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[starts] * hann
    power = (np.abs(np.fft.rfft(pieces, axis=1)) * (2 / hann.sum())) ** 2
    mel_power = _make_mel_bands(rate_hz, window, bands) @ power.T
    return (10 * np.log10(np.maximum(mel_power, 1e-12))).astype(np.float32)


@lru_cache(maxsize=8)
def _make_mel_bands(rate_hz: int, window: int, bands: int) -> Samples:
    """Triangles of equal height on the mel scale, [bands, window / 2 + 1]; none is narrower than a frequency bin."""
    bins_hz = np.fft.rfftfreq(window, 1 / rate_hz)
    # m = 2595 log10(1 + f / 700): O'Shaughnessy 1987
    top_mel = 2595 * np.log10(1 + min(HIGHEST_HZ, rate_hz / 2) / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top_mel, bands + 2) / 2595) - 1)
    centers_hz = edges_hz[1:-1, None]
    below = np.maximum(centers_hz - edges_hz[:-2, None], bins_hz[1])
    above = np.maximum(edges_hz[2:, None] - centers_hz, bins_hz[1])
    distances = bins_hz[None] - centers_hz
    return np.maximum(0, 1 - np.where(distances < 0, -distances / below, distances / above)).astype(np.float32)
