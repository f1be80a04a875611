"""Noise levels as signal-to-noise ratios; the distributions they are drawn from are in `presto_core.config.noise`."""

from __future__ import annotations

import torch
from torch import Tensor


def snr_db(sigma: Tensor, sigma_data: float) -> Tensor:
    """Signal-to-noise ratio 20 log10(sigma_data / sigma) in decibels: the axis of the paper's figure 1."""
    return 20 * torch.log10(sigma_data / sigma)
