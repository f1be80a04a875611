"""Gradient accumulation: a worker's share of a batch in micro-batches, whose gradients sum to that of its mean loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from presto_core.training.parallel import Parallel
from presto_core.training.row_rng import Draws
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
    draws: Draws
    weight: float
    last: bool

    def before_backward(self, parallel: Parallel, *networks: nn.Module) -> None:
        """Called before the forward pass whose gradient moves these networks: only the last part's is exchanged."""
        for network in networks:
            parallel.synchronise(network, self.last)


def micro_batches(batch: Batch, generator: torch.Generator, parallel: Parallel) -> list[MicroBatch]:
    """A worker's share in parts of `parallel.micro_batch_size` rows, the last of which may be smaller."""
    rows = len(batch.x0)
    size = parallel.micro_batch_size or rows
    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    first = parallel.rank * rows
    draws = Draws(generator, mine=slice(first, first + rows), of=parallel.world_size * rows)
    return [
        MicroBatch(batch.rows(s), d, (s.stop - s.start) / rows, s.stop == rows)
        for s, d in zip(slices, draws.split(slices))
    ]


def accumulated(backward: Callable[[MicroBatch], Metrics], parts: Sequence[MicroBatch]) -> Metrics:
    """Run a loss's backward on each part; its metrics, observed on the rows of all parts."""
    return joined([backward(part) for part in parts])


def joined(metrics: Sequence[Metrics]) -> Metrics:
    """Observations of several micro-batches as those of one batch."""
    if len(metrics) == 1:
        return metrics[0]
    return {name: torch.cat([m[name] for m in metrics]) for name in metrics[0]}
