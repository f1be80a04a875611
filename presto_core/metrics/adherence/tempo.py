"""The tempo of a clip: its onsets, then the beat period whose multiples the onsets repeat at best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presto_core.metrics.adherence.onsets import HOP, measure_onsets
from presto_core.metrics.adherence.waveform import ANALYSIS_RATE_HZ, prepare_waveform

Array = NDArray[np.float64]

MULTIPLES = 4
"""Multiples of a beat period that count: one bar of four beats."""
TYPICAL_BPM, SPREAD_OCTAVES = 105.0, 1.0
"""Prior of the tempo, log-normal: what people tap to, when a pulse and its double fit alike (Ellis 2007)."""
TEMPI_BPM = np.geomspace(40.0, 220.0, 600)
LEAST_ONSETS_DB = 0.05
"""Least standard deviation of the onset strength: steady tones have 0.01, noise 0.1, music 0.2 and more."""
CLEAR_BEAT = 0.2
"""Least mean autocorrelation at the multiples: noise and steady tones stay below 0.13, and 6 s clips of music with a
beat lie above 0.24 (docs/adherence.md)."""


def estimate_tempo(audio: NDArray[np.floating], *, rate_hz: int) -> float | None:
    """Return the tempo of mono audio [N] in beats per minute, or None: no clear beat, or shorter than 2 s.

    The onset strength is the mean rise of a mel spectrogram in dB. Its autocorrelation r is read at the first
    four multiples of every candidate period (the comb of Davies and Plumbley 2007) and weighted by the prior.

    Raises:
        ValueError: see `prepare_waveform`.
    """
    waveform = prepare_waveform(audio, rate_hz=rate_hz)
    if waveform is None:
        return None
    onsets = measure_onsets(waveform)
    return choose_tempo(autocorrelate(onsets)) if onsets.std() > LEAST_ONSETS_DB else None


def autocorrelate(onsets: Array) -> Array:
    """Return the autocorrelation of the mean-free onset strength [F] per lag, r[0] = 1.

    Each lag is divided by its number of products, and by no fewer than a quarter of the frames.
    """
    centered, frames = onsets - onsets.mean(), len(onsets)
    energy = np.abs(np.fft.rfft(centered, 2 * frames)) ** 2
    products = np.fft.irfft(energy)[:frames] / np.maximum(frames - np.arange(frames), frames / 4)
    return products / products[0]


def choose_tempo(correlation: Array) -> float | None:
    """Return the tempo in beats per minute that an autocorrelation of onsets [F] supports best, or None."""
    support = measure_support(correlation)
    # W(tempo) = exp(-1/2 (log2(tempo / typical) / spread)^2) (Ellis 2007)
    prior = np.exp(-0.5 * (np.log2(TEMPI_BPM / TYPICAL_BPM) / SPREAD_OCTAVES) ** 2)
    best = int(np.argmax(support * prior))
    return float(TEMPI_BPM[best]) if support[best] >= CLEAR_BEAT else None


def measure_support(correlation: Array) -> Array:
    """Return per candidate tempo the mean of r at multiples k of its period, weighted by 1/k: [tempi]."""
    frames = len(correlation)
    periods = 60 * ANALYSIS_RATE_HZ / HOP / TEMPI_BPM
    total, weight = np.zeros(len(periods)), np.zeros(len(periods))
    for multiple in range(1, MULTIPLES + 1):
        lags = periods * multiple
        counts = (lags < 0.8 * frames) / multiple  # later lags rest on too few products
        total += counts * np.interp(lags, np.arange(frames), correlation)
        weight += counts
    return total / np.maximum(weight, 1e-9)
