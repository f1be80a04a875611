"""How much of each pitch class a clip has: the tuning and chroma of librosa 0.11, equal to rounding, without numba."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from presto_core.metrics.adherence.waveform import ANALYSIS_RATE_HZ, compute_spectra

Array = NDArray[np.float64]
Spectra = NDArray[np.float32]

N_FFT, HOP = 8192, 2048
CENTER_OCTAVE, OCTAVE_WIDTH = 4.5, 1.5
"""Octaves that count most, and the width of that weight: below C2 a semitone is narrower than a bin of the spectrum."""
TUNING_BAND_HZ = (150.0, 4000.0)
PEAK_SHARE = 0.1
"""Least magnitude of a peak per the largest of its frame."""
TUNING_STEPS = 100
A0_HZ = 27.5


def measure_chroma(waveform: NDArray[np.float32]) -> Array:
    """Return the amplitude per pitch class, C to B, of audio [N] at `ANALYSIS_RATE_HZ`, tuned to the clip: [12]."""
    spectra = compute_spectra(waveform, n_fft=N_FFT, hop=HOP).numpy()
    # the filters are linear, so the frames may be summed before
    return make_chroma_filters(estimate_tuning(spectra)) @ spectra.sum(0, dtype=np.float64)


def estimate_tuning(spectra: Spectra) -> float:
    """Return how far the peaks of magnitudes [frames, bins] lie from equal temperament: -0.5 ... 0.49 semitones.

    The fullest bin of a histogram over the peaks whose magnitude is above the median peak's (librosa.estimate_tuning);
    0 without peaks.
    """
    pitches_hz, magnitudes = find_peaks(spectra)
    if not len(pitches_hz):
        return 0.0
    loud_hz = pitches_hz[magnitudes >= np.median(magnitudes)]
    residual = np.mod(12 * np.log2(loud_hz / A0_HZ), 1.0)
    residual[residual >= 0.5] -= 1.0
    counts, edges = np.histogram(residual, np.linspace(-0.5, 0.5, TUNING_STEPS + 1))
    return float(edges[np.argmax(counts)])


def find_peaks(spectra: Spectra) -> tuple[Spectra, Spectra]:
    """Return frequency in Hz and magnitude of the peaks of all frames, by a parabola through three bins (Smith, CCRMA).

    Args:
        spectra: magnitudes [frames, bins].
    """
    hz_per_bin = ANALYSIS_RATE_HZ / N_FFT
    first, last = (int(np.ceil(hz / hz_per_bin)) for hz in TUNING_BAND_HZ)
    low, middle, high = (spectra[:, first + shift : last + shift] for shift in (-1, 0, 1))
    loud = middle > PEAK_SHARE * spectra.max(1, keepdims=True)
    frame, at = np.nonzero(loud & (middle > low) & (middle >= high))
    low, middle, high = (values[frame, at] for values in (low, middle, high))
    bend, slope = high + low - 2 * middle, (high - low) / 2
    shift = np.where(np.abs(slope) >= np.abs(bend), 0, -slope / np.where(bend, bend, 1))
    pitches_hz = ((first + at + shift) * hz_per_bin).astype(np.float32)
    return pitches_hz, (middle + 0.5 * slope * shift).astype(np.float32)


@lru_cache(maxsize=TUNING_STEPS)
def make_chroma_filters(tuning: float) -> Array:
    """Return the weight of each bin in each pitch class, C to B, tuned by parts of a semitone: [12, bins].

    Gaussian bumps around the semitones, as wide as a semitone or a bin, with columns of unit norm, times a Gaussian
    over octaves (Ellis 2007; librosa.filters.chroma).
    """
    bins = N_FFT // 2 + 1
    hz = np.arange(1, bins + 1) * ANALYSIS_RATE_HZ / N_FFT
    semitones = 12 * np.log2(hz / (A0_HZ * 2 ** (tuning / 12)))
    semitones = np.concatenate([[semitones[0] - 18], semitones])  # bin 0 has none: a made-up one, 1.5 octaves below
    widths = np.maximum(np.diff(semitones), 1)
    semitones = semitones[:-1]
    distances = np.remainder(semitones - np.arange(12)[:, None] + 6 + 120, 12) - 6
    weights = np.exp(-0.5 * (2 * distances / widths) ** 2)
    weights /= np.sqrt((weights**2).sum(0))
    weights *= np.exp(-0.5 * ((semitones / 12 - CENTER_OCTAVE) / OCTAVE_WIDTH) ** 2)
    return np.asarray(np.roll(weights, -3, axis=0).astype(np.float32), dtype=np.float64)
