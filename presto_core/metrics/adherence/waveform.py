"""Audio as the estimators of tempo and key take it: mono, float32, at 22.05 kHz, and its spectra."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


@torch.inference_mode()
def compute_spectra(waveform: NDArray[np.float32], *, n_fft: int, hop: int) -> Tensor:
    """Return magnitudes [1 + N // hop, n_fft / 2 + 1] of audio [N]: Hann window, frames centred on multiples of `hop`.

    Zeros go on beyond both ends.
    """
    spectra = torch.stft(
        torch.from_numpy(np.ascontiguousarray(waveform)), n_fft, hop, window=_make_window(n_fft), center=True,
        pad_mode="constant", return_complex=True,
    )  # fmt: skip
    return spectra.T.abs()


@lru_cache(maxsize=4)
def _make_window(length: int) -> Tensor:
    return torch.hann_window(length)
