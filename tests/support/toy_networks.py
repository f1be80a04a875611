"""Small networks, conditions and batches for the tests of presto_core."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.networks.dit import DiT
from presto_core.training.state import Batch, Cursor

TEXT_DIM, TOKENS = 8, 3


def conditions(batch: int, seed: int = 0) -> Conditioning:
    rng = torch.Generator().manual_seed(seed)
    return Conditioning(
        pooled=torch.randn(batch, TEXT_DIM, generator=rng),
        tokens=torch.randn(batch, TOKENS, TEXT_DIM, generator=rng),
        mask=torch.arange(TOKENS)[None] < torch.randint(1, TOKENS + 1, (batch, 1), generator=rng),
        tempo_bpm=torch.full((batch,), 100.0),
        key=torch.randint(0, UNKNOWN_KEY, (batch,), generator=rng),
        keep=torch.ones(batch, dtype=torch.bool),
    )


def tiny_dit(*, channels: int = 4, depth: int = 3, dim: int = 16, patch: int = 2, seed: int = 0) -> DiT:
    """Return a network whose zero-initialised weights are random, so that its outputs are not zero."""
    torch.manual_seed(seed)
    net = DiT(NetworkConfig(dim=dim, depth=depth, heads=2, patch=patch), channels=channels, text_dim=TEXT_DIM)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def batches(*, channels: int = 4, frames: int = 8, size: int = 4, cursor: Cursor | None = None) -> Iterator[Batch]:
    """Yield an endless stream whose n-th batch depends only on n."""
    row = (cursor or Cursor()).row
    while True:
        rng = torch.Generator().manual_seed(row)
        x0 = torch.randn(size, channels, frames, generator=rng)
        row += size
        yield Batch(x0, conditions(size, seed=row), Cursor(0, row))
