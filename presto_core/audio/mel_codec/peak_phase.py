"""Initial phase for Griffin-Lim from the magnitudes: every bin advances at the frequency of its nearest peak.

Single Pass Spectrogram Inversion (Beauregard, Harish & Wyse 2015). Four Griffin-Lim iterations from here are as close
to the original as sixteen from random phase, and sustained notes stay steady.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from presto_core.audio.mel_codec.griffin_lim import iter_row_blocks


def peak_phase(magnitude: Tensor, *, hop: int) -> Tensor:
    """Return the phase [..., frames, bins] in radians, modulo 2 pi, of magnitudes [..., frames, bins].

    The phase of a bin advances by 2 pi f hop / n_fft per frame, where f is the frequency (in bins) of its nearest peak;
    bins at an odd distance from their peak are shifted by pi, which follows from a centred window.
    """
    return continue_phase(magnitude, torch.zeros_like(magnitude[..., 0, :]), hop=hop)[0]


def continue_phase(magnitude: Tensor, last_turns: Tensor, *, hop: int) -> tuple[Tensor, Tensor]:
    """Return the phase as `peak_phase` does, and the turns [..., bins] of the last frame.

    Args:
        last_turns: those of the frame before the first; zero at the start of a clip.
    """
    phase = torch.empty_like(magnitude)
    # blocks stay in the cache, and float32 is exact enough
    for rows in iter_row_blocks(magnitude):
        advance, odd = _phase_advance(magnitude[..., rows, :], hop=hop)
        running = advance.mT.contiguous().cumsum(-1).mT.contiguous()  # half the time of cumsum(-2), and its bits
        turns = running.add_(last_turns[..., None, :]).frac_()
        last_turns = turns[..., -1, :].clone()
        torch.mul(turns.add_(odd, alpha=0.5), 2 * math.pi, out=phase[..., rows, :])
    return phase, last_turns


def _phase_advance(magnitude: Tensor, *, hop: int) -> tuple[Tensor, Tensor]:
    """Return the advance per frame in turns modulo 1, and 1 for bins at an odd distance from their peak, else 0."""
    n_fft = 2 * (magnitude.shape[-1] - 1)
    level = magnitude.clamp_min(1e-7).log()
    peaks = _find_peaks(level)
    owner = _find_nearest_peak(peaks)
    frequency = _peak_frequency(level, peaks).gather(-1, owner.long())
    odd = (_list_bins(magnitude) - owner).bitwise_and_(1)
    return frequency.mul_(hop / n_fft).frac_(), odd.float()


def _find_peaks(level: Tensor) -> Tensor:
    """Return local maxima over frequency, [..., bins] bool; edge bins are never peaks."""
    peaks = torch.zeros_like(level, dtype=torch.bool)
    middle = level[..., 1:-1]
    peaks[..., 1:-1] = (middle > level[..., :-2]) & (middle >= level[..., 2:])
    return peaks


def _find_nearest_peak(peaks: Tensor) -> Tensor:
    """Return the bin index of the nearest peak, the lower one in a tie; an edge bin if a frame has no peak."""
    bins = peaks.shape[-1]
    at = _list_bins(peaks)
    below = torch.where(peaks, at, -bins).cummax(-1).values
    above = torch.where(peaks, at, 2 * bins).flip(-1).cummin(-1).values.flip(-1)
    return torch.where(at - below <= above - at, below, above).clamp_(0, bins - 1)


def _list_bins(frames: Tensor) -> Tensor:
    """Return the bin indices of frames [..., bins], in the smallest type that holds sums of three of them."""
    bins = frames.shape[-1]
    return torch.arange(bins, dtype=torch.int16 if 3 * bins < 2**15 else torch.int32, device=frames.device)


def _peak_frequency(level: Tensor, peaks: Tensor) -> Tensor:
    """Return the frequency in bins, by a parabola through each peak and its neighbours; elsewhere the bin index."""
    # the parabola through (-1, low), (0, middle), (1, high) peaks at (low - high) / (2 (low - 2 middle + high))
    low, middle, high = level[..., :-2], level[..., 1:-1], level[..., 2:]
    bend = (low + high).sub_(middle, alpha=2).clamp_max_(-1e-6)
    offset = (low - high).mul_(0.5).div_(bend).clamp_(-0.5, 0.5)
    bins = torch.arange(level.shape[-1], dtype=level.dtype, device=level.device)
    frequency = bins.repeat(*level.shape[:-1], 1)
    frequency[..., 1:-1] += offset.mul_(peaks[..., 1:-1])
    return frequency
