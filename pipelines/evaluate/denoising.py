"""A teacher's denoising error on held-out rows, beside that of the Wiener denoiser of its training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.console import progress_bar
from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset
from pipelines.data.latent_spectrum import measure_spectrum
from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows
from pipelines.evaluate.rows import number_compositions, read_rows
from pipelines.inference.model import Model
from presto_core.diffusion.wiener import denoise_wiener
from presto_core.errors import UserError
from presto_core.metrics.denoising import SIGMAS, DenoisingComparison, compare_errors, measure_errors
from presto_core.training.step_rng import make_step_rng

BATCH_ROWS = 64


def compare_with_wiener(
    model: Model, dataset: LatentDataset, *, rows: int, seed: int = 0, sigmas: Sequence[float] = SIGMAS
) -> list[DenoisingComparison]:
    """Compare a model with the Wiener denoiser, level by level, on the same validation rows and noise.

    The model has the rows' captions, tempi and keys, as in sampling; the Wiener denoiser knows the spectrum of the
    training split alone.

    Args:
        rows: most validation rows, evenly from all tracks.

    Raises:
        StoreError: a split is empty or damaged.
        UserError: an estimate of the model is not finite.
    """
    spectrum = measure_spectrum(dataset, model.card).to(model.device)
    held_out = read_rows(dataset, dataset.validation_split)
    held_out = held_out.take(slice(0, rows))
    tracks, comparisons = number_compositions(held_out.composition), []
    with progress_bar("denoising error", len(sigmas)) as bar:
        for number, sigma in enumerate(sigmas):
            rng = make_step_rng(seed, total_step=number, device=model.device)
            batches = [
                _measure_batch(model, spectrum, held_out.take(slice(start, start + BATCH_ROWS)), sigma, rng)
                for start in range(0, len(held_out), BATCH_ROWS)
            ]
            errors, wiener_errors = (np.concatenate(side) for side in zip(*batches))
            comparisons.append(compare_errors(sigma, errors, wiener_errors, tracks))
            bar.update(number + 1, f"sigma {sigma:.3g}")
    return comparisons


def _measure_batch(
    model: Model, spectrum: Tensor, rows: FullRows, sigma: float, rng: torch.Generator
) -> tuple[Array, Array]:
    """Errors [B] of the model and of the Wiener denoiser on one batch."""
    latents = torch.tensor(np.asarray(rows.latents, dtype=np.float32), device=model.device)
    x0, cond = model.card.normalize(latents), make_conditioning(rows).to(model.device)
    level = torch.full((len(rows),), sigma, device=model.device)
    noisy = x0 + sigma * torch.randn(x0.shape, generator=rng, device=model.device)
    try:
        errors = measure_errors(lambda x: model.denoise(x, level, cond), x0, noisy)
    except ValueError as error:
        raise UserError(f"teacher {model.artifact.id}: {error} at sigma {sigma:.3g}; lower its learning rate") from None
    return errors, measure_errors(lambda x: denoise_wiener(x, level, spectrum), x0, noisy)
