"""Noise levels as signal-to-noise ratios; their distributions are in `presto_core.config.noise`."""

from __future__ import annotations

import torch
from torch import Tensor


def snr_db(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return the signal-to-noise ratio 20 log10(sigma_data / sigma) in dB, the axis of the Presto paper's figure 1."""
    return 20 * torch.log10(sigma_data / sigma)
