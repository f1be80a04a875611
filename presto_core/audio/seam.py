"""How much a cut is heard: the change of the sound across it, and a click at it, both in dB over mel bands.

Music changes all the time, so a number means little alone: compare it with those of other moments of the same music
(`measure_floor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

Audio = npt.NDArray[np.float32]

CHANGE_SECONDS, CLICK_SECONDS = 0.1, 0.012  # a note, and an attack
BANDS, LOWEST_HZ, HIGHEST_HZ = 40, 40.0, 16000.0
FLOOR_DB = -70.0  # below the loudest band of the surroundings: quieter ones are not heard


@dataclass(frozen=True)
class Seam:
    """A moment where kept and made audio meet.

    Attributes:
        seconds: when.
        change_db: mean difference of the bands' levels in 0.1 s before and after, without the 30 ms of a cross-fade.
        click_db: mean level of the bands in 12 ms around it above the louder of their neighbours; 0 if none.
    """

    seconds: float
    change_db: float
    click_db: float


def measure_seam(audio: Audio, at: int, *, rate_hz: int, crossfade: int = 0) -> Seam:
    """Measure the sound of audio [A, N] around sample `at`; beyond the ends it is silent.

    Args:
        crossfade: samples after `at` that belong to neither side.
    """
    mono = audio.mean(axis=0)
    long, short = round(CHANGE_SECONDS * rate_hz), round(CLICK_SECONDS * rate_hz)
    before = _band_levels(_cut(mono, at - long, long), rate_hz)
    after = _band_levels(_cut(mono, at + crossfade, long), rate_hz)
    floor = max(float(before.max()), float(after.max())) + FLOOR_DB
    change = (before.clamp_min(floor) - after.clamp_min(floor)).abs().mean()
    left, middle, right = (
        _band_levels(_cut(mono, at + shift * short - short // 2, short), rate_hz).clamp_min(floor)
        for shift in (-1, 0, 1)
    )
    click = (middle - torch.maximum(left, right)).clamp_min(0).mean()
    return Seam(at / rate_hz, float(change), float(click))


def measure_floor(audio: Audio, *, rate_hz: int, count: int, seed: int = 0, crossfade: int = 0) -> list[Seam]:
    """Measure `count` random moments of music [A, N] that has no seams; none where it is too short for one."""
    long = round(CHANGE_SECONDS * rate_hz)
    if audio.shape[1] <= 2 * long + crossfade:
        return []
    moments = np.random.default_rng(seed).integers(long, audio.shape[1] - long - crossfade, count)
    return [measure_seam(audio, int(at), rate_hz=rate_hz, crossfade=crossfade) for at in moments]


def _cut(mono: npt.NDArray[np.float32], start: int, length: int) -> Tensor:
    part = mono[max(start, 0) : max(start + length, 0)]
    left = min(max(-start, 0), length)
    padded = np.pad(part, (left, max(0, length - left - len(part))))
    return torch.from_numpy(padded[:length].astype(np.float64))


def _band_levels(samples: Tensor, rate_hz: int) -> Tensor:
    """Levels [bands] in dB of a windowed piece [N]."""
    size = 1 << (max(len(samples), 2048) - 1).bit_length()
    power = torch.fft.rfft(samples * torch.hann_window(len(samples), dtype=torch.float64), n=size).abs().square()
    return 10 * (power @ _filters(size, rate_hz)).clamp_min(1e-20).log10()


@lru_cache(maxsize=8)
def _filters(size: int, rate_hz: int) -> Tensor:
    highest_hz, bins = min(HIGHEST_HZ, rate_hz / 2), size // 2 + 1
    filters = melscale_fbanks(bins, LOWEST_HZ, highest_hz, BANDS, rate_hz, norm="slaney", mel_scale="slaney")
    return filters.double()
