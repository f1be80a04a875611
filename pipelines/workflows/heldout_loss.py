"""The denoising loss of a model on validation rows, at the blocks it runs: how well it denoises what it never saw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset
from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows
from pipelines.evaluate.rows import number_compositions, read_rows
from pipelines.inference.model import Model, open_model
from presto_core.config.noise import NoiseDistribution
from presto_core.losses.dsm import dsm_loss
from presto_core.metrics.replicates import Replicates, deal_tracks

LEVELS, MAX_ROWS, BATCH_SIZE = 8, 256, 32


def measure_heldout_loss(
    uri: str, dataset: LatentDataset, p_train: NoiseDistribution, *, groups: int, max_rows: int = MAX_ROWS
) -> Replicates:
    """Return L_EDM at the model's own budget (METHOD sections 1 and 4) on the validation split, and without groups.

    Every model gets the same rows, noise and levels, so that losses of two models can be subtracted group by group.

    Args:
        uri: folder of a teacher or a layer-distilled model.
        p_train: distribution of the levels; eight are used, in the middle of eight equally likely bins.
        groups: groups of tracks that are left out in turn.
        max_rows: rows to use, evenly from all tracks.

    Raises:
        StoreError: the model is missing, or the split is empty.
    """
    model, rows = open_model(uri), read_rows(dataset, dataset.validation_split)
    rows = rows.take(slice(0, max_rows))
    losses = np.concatenate(
        [_measure_batch(model, rows, start, p_train) for start in range(0, len(rows.caption), BATCH_SIZE)]
    )
    return _replicate_mean(losses, number_compositions(rows.composition), groups)


@torch.inference_mode()
def _measure_batch(model: Model, rows: FullRows, start: int, p_train: NoiseDistribution) -> Array:
    """Losses [B] of some rows, averaged over the levels."""
    batch = rows.take(slice(start, start + BATCH_SIZE))
    x0 = model.card.normalize(torch.tensor(np.asarray(batch.latents, dtype=np.float32)))
    cond, rng = make_conditioning(batch), torch.Generator().manual_seed(start)
    losses = torch.zeros(len(x0))
    for level in p_train.quantile((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).float():
        sigma = level.expand(len(x0))
        noisy = x0 + level * torch.randn(x0.shape, generator=rng)
        x0_hat = model.denoise(noisy, sigma, cond, _select_budget(model, sigma))
        losses += dsm_loss(x0_hat, x0, sigma, model.card.make_precondition()) / LEVELS
    return np.asarray(losses.numpy())


def _select_budget(model: Model, sigma: Tensor) -> Tensor | None:
    budget = model.card.budget
    return budget.blocks_per_sample(sigma) if budget else None


def _replicate_mean(losses: Array, tracks: Array, groups: int) -> Replicates:
    """The mean loss, and without each group of tracks; no replicates of a single track."""
    if len(np.unique(tracks)) < 2:
        return Replicates(float(losses.mean()), (), ())
    folds = deal_tracks(len(losses), tracks, groups)
    without = tuple(float(losses[folds != fold].mean()) for fold in range(int(folds.max()) + 1))
    return Replicates(float(losses.mean()), without, ())
