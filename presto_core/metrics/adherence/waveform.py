"""Audio as the estimators of tempo and key take it: mono, float32, at 22.05 kHz."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ANALYSIS_RATE_HZ = 22050
SHORTEST_SECONDS = 2.0
"""Shorter clips have neither tempo nor key: they hold fewer than three beats at 60 bpm."""


def prepare_waveform(audio: NDArray[np.floating], *, rate_hz: int) -> NDArray[np.float32] | None:
    """Resample mono audio [N] at `rate_hz` to `ANALYSIS_RATE_HZ` -> [N'], or None if it is shorter than 2 s.

    Raises:
        ValueError: the audio is not [N], or holds values that are not finite.
    """
    import soxr

    if audio.ndim != 1:
        raise ValueError(f"audio of shape {list(audio.shape)}: tempo and key take one mono clip [N]")
    if bad := int(np.count_nonzero(~np.isfinite(audio))):
        raise ValueError(
            f"{bad} of {len(audio)} samples are NaN or infinite; the model or file that made them is broken"
        )
    if len(audio) < SHORTEST_SECONDS * rate_hz:
        return None
    return soxr.resample(np.asarray(audio, np.float32), rate_hz, ANALYSIS_RATE_HZ)
