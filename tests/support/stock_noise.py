"""Noise of a stock pipeline whose latents are [B, T, C], from a generator as this package draws it for [B, C, T]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor


@contextmanager
def share_noise(pipeline: Any, rng: torch.Generator) -> Iterator[None]:
    """Let a pipeline and its scheduler draw from a generator: such pipelines give none to the steps between."""

    def draw(shape: tuple[int, ...], **_: Any) -> Tensor:
        batch, frames, channels = shape
        return torch.randn(batch, channels, frames, generator=rng).transpose(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        for part in (pipeline, pipeline.scheduler):
            patch.setattr(f"{type(part).__module__}.randn_tensor", draw)
        yield
