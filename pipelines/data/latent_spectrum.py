"""The spectrum of a data set's training latents: what its Wiener denoiser and a network's Gaussian skip know of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.data.dataset import LatentDataset
from presto_core.diffusion.wiener import estimate_spectrum
from presto_core.models.model_card import ModelCard


def measure_spectrum(dataset: LatentDataset, card: ModelCard, *, at_least: int | None = None) -> Tensor:
    """Return the spectrum [C, T] fp64 of training rows, normalised as the model's card does.

    Args:
        at_least: rows to measure, evenly from all; None takes all.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for latents in dataset.iter_latents("train", at_least=at_least):
        total = total + estimate_spectrum(card.normalize(latents)) * len(latents)
        count += len(latents)
    return total / count
