"""Frozen networks in reduced precision: half the memory of their matrices, and the bits of autocast."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def round_matrices(network: nn.Module, dtype: torch.dtype) -> None:
    """Round weights and biases of all linear layers to `dtype`, in place; the network must run under autocast to it.

    Autocast rounds these same tensors at each call, so the outputs keep their bits. Norms, embeddings and what runs
    outside autocast stay in fp32.

    Raises:
        ValueError: the network is trained: its updates would be lost in rounding.
    """
    if any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("only frozen networks may be rounded")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
