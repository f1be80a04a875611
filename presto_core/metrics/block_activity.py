"""What a network's blocks do while it is called: how often each runs, and how much its activations vary.

Measured by hooks on the blocks, so it holds for whatever ran, not for what a table says should run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class BlockRecord:
    """Attributes:
    runs: samples that went through blocks, summed over blocks and calls.
    variance: block index -> variance of its last output over all elements.
    """

    runs: int = 0
    variance: dict[int, float] = field(default_factory=dict)


@contextmanager
def watched(blocks: nn.ModuleList) -> Iterator[BlockRecord]:
    """Record every call of `blocks` inside the context; each block must return [B, N, D]."""
    record = BlockRecord()

    def hook(index: int, output: Tensor) -> None:
        record.runs += len(output)
        record.variance[index] = float(output.float().var())

    handles = [
        block.register_forward_hook(lambda module, args, output, i=index: hook(i, output))
        for index, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad():
            yield record
    finally:
        for handle in handles:
            handle.remove()
