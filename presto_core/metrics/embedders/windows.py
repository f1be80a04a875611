"""Clips -> windows of the length that an embedding was trained on, and their vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NEGLIGIBLE = 0.05  # part of a window that is dropped: resampling leaves a few samples more than whole windows


def cut_windows(audio: Tensor, length: int) -> Tensor:
    """Cut clips [B, N] into windows: [B, W, length], or [B, 1, N] if the clip is shorter than one.

    The W = ceil(N / length) windows are evenly spaced from the first sample to the last, so they overlap where N is no
    multiple of `length`: every part of a clip counts. A remainder below 5 % of a window is dropped.
    """
    samples = audio.shape[1]
    count = max(1, math.ceil(samples / length - NEGLIGIBLE))
    if count == 1:
        return audio[:, None, :length]
    starts = torch.linspace(0, samples - length, count).round().long().tolist()
    return torch.stack([audio[:, start : start + length] for start in starts], dim=1)


def embed_windows(audio: Tensor, length: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Embed every window of clips [B, N] by `embed`, [M, length] -> [M, D]: [B, W, D] float32 on the CPU."""
    windows = cut_windows(audio, length)
    return embed(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]).float().cpu()
