"""Random numbers of one update, by row of the global batch: what a row gets does not depend on who computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from presto_core.config.noise import NoiseDistribution


class Draws:
    """Draws for some rows of a global batch.

    Numbers are drawn for all rows of the global batch, from a generator that is seeded alike on all workers, and each
    worker keeps its own rows'. So they stay the same however many workers and micro-batches share a batch, for the cost
    of the other rows' numbers: on a GPU one kernel, and as much memory for a moment as the global batch's latents.

    Args:
        generator: of this update, in the same state on every worker, on the device of the rows.
        mine: the worker's rows in the global batch.
        of: rows of the global batch.
        part: rows of the worker's own that are wanted; all of them unless told.
        shared: numbers of all of the worker's rows, kept until every part has taken its own.
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        mine: slice,
        of: int,
        part: slice | None = None,
        shared: list[Tensor] | None = None,
    ) -> None:
        self._generator, self._mine, self._of = generator, mine, of
        self._part, self._shared, self._taken = part or slice(None), shared, 0

    def split(self, parts: Sequence[slice]) -> list[Draws]:
        """One for each part of the worker's rows; each must then be asked for the same things in the same order."""
        shared: list[Tensor] | None = [] if len(parts) > 1 else None
        return [Draws(self._generator, mine=self._mine, of=self._of, part=part, shared=shared) for part in parts]

    def sigma(self, p: NoiseDistribution) -> Tensor:
        """[B] noise levels from p, fp32."""
        rng, device = self._generator, self._generator.device
        u = self._next(lambda: torch.rand(self._of, generator=rng, device=device, dtype=torch.float64)[self._mine])
        return p.quantile(u[self._part]).float()

    def noised(self, x0: Tensor, sigma: Tensor) -> Tensor:
        """x0 + sigma eps with eps ~ N(0, I); x0: [B, C, T], sigma: [B]."""
        rng, shape = self._generator, (self._of, *x0.shape[1:])
        eps = self._next(lambda: torch.randn(shape, generator=rng, device=x0.device, dtype=x0.dtype)[self._mine])
        return x0 + sigma[:, None, None].to(x0.dtype) * eps[self._part]

    def index(self, n: int) -> int:
        """One of 0 ... n - 1, the same for all rows of the global batch."""
        rng, device = self._generator, self._generator.device
        return int(self._next(lambda: torch.randint(n, (1,), generator=rng, device=device)))

    def _next(self, draw: Callable[[], Tensor]) -> Tensor:
        if self._shared is None:
            return draw()
        if self._taken == len(self._shared):
            self._shared.append(draw().clone())  # the clone lets go of other workers' rows
        self._taken += 1
        return self._shared[self._taken - 1]
