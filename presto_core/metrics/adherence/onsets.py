"""Where notes begin in a clip: the onset strength of librosa 0.11, equal to rounding, without its compiler (numba)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torchaudio.functional as TAF
from numpy.typing import NDArray
from torch import Tensor

from presto_core.metrics.adherence.waveform import ANALYSIS_RATE_HZ, compute_spectra

N_FFT, HOP, N_MELS = 2048, 256, 128
LEAST_POWER, RANGE_DB = 1e-10, 80.0
"""What counts as silence: power per band, and how far below the loudest value of the clip."""


def measure_onsets(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the onset strength per frame of audio [N] at `ANALYSIS_RATE_HZ`: [1 + N // HOP].

    The mean over mel bands of the rise in dB since the frame before, falls counting 0 (Böck and Widmer 2013 without
    their maximum filter, as librosa.onset.onset_strength has it), shifted by half a window as there.
    """
    power = compute_spectra(waveform, n_fft=N_FFT, hop=HOP).square() @ _make_mel_filters()
    level_db = 10 * power.clamp_min(LEAST_POWER).log10()
    rise = level_db.clamp_min(level_db.max() - RANGE_DB).diff(dim=0).clamp_min(0).mean(1)
    delay = torch.zeros(1 + N_FFT // (2 * HOP))  # one frame for the difference, and half a window
    return torch.cat([delay, rise])[: len(level_db)].numpy().astype(np.float64)


@lru_cache(maxsize=1)
def _make_mel_filters() -> Tensor:
    """librosa's default mel filters, [bins, mels]."""
    top_hz = ANALYSIS_RATE_HZ / 2
    return TAF.melscale_fbanks(N_FFT // 2 + 1, 0.0, top_hz, N_MELS, ANALYSIS_RATE_HZ, norm="slaney", mel_scale="slaney")
