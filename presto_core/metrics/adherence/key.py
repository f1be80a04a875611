"""The key of a clip: its chroma against key profiles, and how near two keys are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.metrics.adherence.chroma import measure_chroma
from presto_core.metrics.adherence.waveform import prepare_waveform

Array = NDArray[np.float64]

CLEAR_TONALITY = 0.05
"""Least coefficient of variation of the chroma: noise has 0.02, music 0.13 and more (docs/adherence.md)."""
# Albrecht and Shanahan (2013): shares of pitch classes in music, from the tonic upwards
MAJOR_PROFILE = (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081)
MINOR_PROFILE = (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052)
FIFTH_SCORE, RELATIVE_SCORE, PARALLEL_SCORE = 0.5, 0.3, 0.2


def estimate_key(audio: NDArray[np.floating], *, rate_hz: int) -> int | None:
    """Return the key of mono audio [N] as `key_index` counts (0..11 major on C..B, 12..23 minor), or None.

    None: silence and noise, whose pitch classes are all alike, and clips shorter than 2 s. A clip that modulates has
    one key as well: that of its pitch classes as a whole.

    Raises:
        ValueError: see `prepare_waveform`.
    """
    waveform = prepare_waveform(audio, rate_hz=rate_hz)
    return None if waveform is None else match_key(measure_chroma(waveform))


def match_key(chroma: Array) -> int | None:
    """Return the key whose profile correlates best with pitch-class amplitudes [12]; None if these hardly differ.

    The key is arg max over (tonic, mode) of the correlation of chroma with the rotated profile (Krumhansl 1990, ch. 4).
    """
    if chroma.std() <= CLEAR_TONALITY * chroma.mean():
        return None
    return int(np.argmax(_PROFILES @ (chroma - chroma.mean())))


def key_similarity(estimated: int | None, expected: int) -> float:
    """Return MIREX's score of an estimated key: 1 equal, 0.5 a fifth above, 0.3 relative, 0.2 parallel, else 0."""
    if estimated is None or estimated == UNKNOWN_KEY:
        return 0.0
    (mode, tonic), (true_mode, true_tonic) = divmod(estimated, 12), divmod(expected, 12)
    interval = (tonic - true_tonic) % 12
    if mode == true_mode:
        return {0: 1.0, 7: FIFTH_SCORE}.get(interval, 0.0)
    relative_interval = 9 if mode else 3  # A minor lies 9 semitones above C major, C major 3 above A minor
    return {0: PARALLEL_SCORE, relative_interval: RELATIVE_SCORE}.get(interval, 0.0)


def _make_profiles() -> Array:
    """Return the 24 rotated profiles, free of their mean and of length 1: [24, 12]."""
    rows = np.stack([np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)])
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_PROFILES = _make_profiles()
