"""Gradient accumulation: a worker's share of a batch in micro-batches, whose gradients sum to that of its mean loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from presto_core.training.parallel import Parallel
from presto_core.training.row_rng import RowRng
from presto_core.training.state import Batch

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the networks at once.

    Attributes:
        draws: their random numbers.
        weight: their share of the worker's rows; a mean over these rows counts so much in the mean over all.
        last: whether none follow.
    """

    batch: Batch
    row_rng: RowRng
    weight: float
    is_last: bool

    def set_grad_sync(self, parallel: Parallel, *networks: nn.Module) -> None:
        """Called before the forward pass whose gradient moves these networks: only the last part's is exchanged."""
        for network in networks:
            parallel.set_requires_grad_sync(network, self.is_last)


def split_micro_batches(batch: Batch, generator: torch.Generator, parallel: Parallel) -> list[MicroBatch]:
    """A worker's share in parts of `parallel.micro_batch_size` rows, the last of which may be smaller."""
    rows = len(batch.x0)
    size = parallel.micro_batch_size or rows
    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    first = parallel.rank * rows
    row_rng = RowRng(generator, local_rows=slice(first, first + rows), global_rows=parallel.world_size * rows)
    return [
        MicroBatch(batch.rows(s), d, (s.stop - s.start) / rows, s.stop == rows)
        for s, d in zip(slices, row_rng.split(slices))
    ]


def accumulate(backward: Callable[[MicroBatch], Metrics], micro_batches: Sequence[MicroBatch]) -> Metrics:
    """Run a loss's backward on each part; its metrics, observed on the rows of all parts."""
    return concat_metrics([backward(micro_batch) for micro_batch in micro_batches])


def concat_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Observations of several micro-batches as those of one batch."""
    if len(metrics) == 1:
        return metrics[0]
    return {name: torch.cat([m[name] for m in metrics]) for name in metrics[0]}
