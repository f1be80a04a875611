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
class BlockActivity:
    """Attributes:
    runs: samples that went through blocks, summed over blocks and calls.
    variance: block index -> variance of its last output over all elements.
    """

    runs: int = 0
    variance: dict[int, float] = field(default_factory=dict)


@contextmanager
def record_block_activity(blocks: nn.ModuleList) -> Iterator[BlockActivity]:
    """Record every call of `blocks` inside the context; each block must return [B, N, D]."""
    activity = BlockActivity()

    def on_output(index: int, output: Tensor) -> None:
        activity.runs += len(output)
        activity.variance[index] = float(output.float().var())

    handles = [
        block.register_forward_hook(lambda module, args, output, i=index: on_output(i, output))
        for index, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad():
            yield activity
    finally:
        for handle in handles:
            handle.remove()
