"""Exponential moving average of a network's weights; the copy that is kept, evaluated and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """weights <- d weights + (1 - d) network, with d ramped up so that early averages are not the initialisation.

    Args:
        network: the network to follow; its weights are copied.
        decay: upper limit of d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards `network`; called once for each of its own optimiser steps."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        self.updates += 1
