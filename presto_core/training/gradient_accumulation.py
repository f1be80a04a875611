"""Gradient accumulation: micro-batches of a worker's rows, whose gradients sum to that of the mean loss."""

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
    """Rows that pass through the networks together.

    Attributes:
        row_rng: their random numbers.
        weight: their fraction of the worker's rows, which scales a mean over them in the mean over all rows.
        is_last: whether it is the last micro-batch of the step.
    """

    batch: Batch
    row_rng: RowRng
    weight: float
    is_last: bool

    def set_grad_sync(self, parallel: Parallel, *networks: nn.Module) -> None:
        """Enable gradient averaging for the last micro-batch only; call it before the forward pass to differentiate."""
        for network in networks:
            parallel.set_requires_grad_sync(network, self.is_last)


def split_micro_batches(batch: Batch, generator: torch.Generator, parallel: Parallel) -> list[MicroBatch]:
    """Split a worker's rows into micro-batches of `parallel.micro_batch_size`; the last one may be smaller."""
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
    """Run `backward` on each micro-batch and return the metrics of all rows."""
    return concat_metrics([backward(micro_batch) for micro_batch in micro_batches])


def concat_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Concatenate the metrics of several micro-batches."""
    if len(metrics) == 1:
        return metrics[0]
    return {name: torch.cat([m[name] for m in metrics]) for name in metrics[0]}
