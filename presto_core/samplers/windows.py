"""Latents longer than a denoiser was trained on, or without ends: overlapping windows whose estimates are blended.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5): each window is denoised on its own, and a frame's x0 is the weighted mean
of the estimates of all windows that hold it. There is one state and one noise for the whole, so that any sampler of
this room works on it unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, Denoiser

WINDOWS_AT_ONCE = 8  # in one batch: memory does not grow with the length of a piece


@dataclass(frozen=True)
class Windows:
    """How windows cover latents.

    Attributes:
        index: [W, F] frame of the whole that each frame of each window is; the same one may occur twice on a circle.
        weights: [W, F] fp64; over all occurrences of a frame they sum to 1.
        frames: frames of the whole.
    """

    index: Tensor
    weights: Tensor
    frames: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def centers(self) -> list[float]:
        """The middle of each window, in frames of the whole."""
        return [float(row[0]) + self.index.shape[1] / 2 for row in self.index]


def cover_line(frames: int, *, window: int, overlap: int) -> Windows:
    """Cover `frames` with windows that share about `overlap` frames; what fits into one window is one of its length.

    The shares rise and fall linearly over the overlaps. The first window begins and the last one ends with the whole.

    Raises:
        ValueError: the overlap is not within 1 ... window - 1.
    """
    if frames <= window:
        return Windows(torch.arange(frames)[None], torch.ones(1, frames, dtype=torch.float64), frames)
    if not 1 <= overlap < window:
        raise ValueError(f"overlap={overlap} is out of range; set it from 1 to {window - 1}")
    count = 1 + math.ceil((frames - window) / (window - overlap))
    starts = torch.linspace(0, frames - window, count).round().long()
    index = starts[:, None] + torch.arange(window)
    ramp = (torch.arange(window, dtype=torch.float64) + 0.5) / (overlap + 0.5)
    shape = torch.minimum(ramp, ramp.flip(0)).clamp_max(1)
    shares = shape.repeat(count, 1)
    shares[0, : window // 2] = 1.0
    shares[-1, window // 2 :] = 1.0
    return _normalize(index, shares, frames)


def cover_circle(frames: int, *, window: int) -> Windows:
    """Cover a circle of `frames`, whose last frame is followed by its first, with windows that overlap by half or more.

    No window's ends are heard: its share falls to nothing there. A circle shorter than a window is seen several turns
    in a row, as a loop is heard.
    """
    count = max(2, math.ceil(2 * frames / window))
    starts = (torch.arange(count) * frames / count).round().long()
    index = (starts[:, None] + torch.arange(window)) % frames
    # sin^2: half-overlapping windows sum to one
    shape = torch.sin(math.pi * (torch.arange(window, dtype=torch.float64) + 0.5) / window).square()
    return _normalize(index, shape.repeat(count, 1), frames)


def make_windowed_denoiser(denoise: Denoiser, windows: Windows) -> Denoiser:
    """Return the denoiser of a whole of which `denoise` sees windows; one window that is the whole changes no bit.

    The denoiser takes x: [1, C, frames] with conditions of one row for all windows, or of one row per window.
    """
    if len(windows) == 1:
        return denoise

    def denoise_windows(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        index, weights = windows.index.to(x.device), windows.weights.to(x)
        x0 = torch.zeros_like(x)
        for rows in torch.arange(len(windows), device=x.device).split(WINDOWS_AT_ONCE):
            parts = x[0][:, index[rows]].transpose(0, 1)  # [w, C, F]
            own = None if cond is None else cond.rows(rows if len(cond) > 1 else torch.zeros_like(rows))
            estimates = denoise(parts, sigma.expand(len(rows)), own, budget)
            # MultiDiffusion, eq. 5: x0[t] = sum_w weight_w[t] D(window_w)[t], the weights of a frame summing to 1
            for row, estimate in zip(rows.tolist(), estimates):
                x0[0].index_add_(1, index[row], estimate * weights[row])
        return x0

    return denoise_windows


def _normalize(index: Tensor, shares: Tensor, frames: int) -> Windows:
    total = torch.zeros(frames, dtype=torch.float64).index_add_(0, index.flatten(), shares.flatten())
    return Windows(index, shares / total[index], frames)
