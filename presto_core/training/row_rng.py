"""Random numbers of one update per row of the global batch, independent of which worker computes the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from presto_core.config.noise import NoiseDistribution
from presto_core.device import send


class RowRng:
    """Random numbers for some rows of a global batch.

    On a GPU, noise levels come from a generator of the CPU with the same seed, so that the host knows them, and what
    follows from them, without waiting for the GPU.

    Numbers are drawn for all rows of the global batch, from a generator with the same seed on all workers, and each
    worker keeps those of its rows. They do not depend on the number of workers and micro-batches; the cost is drawing
    the other rows' numbers: one kernel on a GPU, and briefly the memory of the global batch's latents.

    Args:
        generator: generator of this update, in the same state on every worker, on the device of the rows.
        local_rows: the worker's rows in the global batch.
        global_rows: number of rows of the global batch.
        subset: rows to use of the worker's own; None uses all.
        shared: numbers of all of the worker's rows, shared by the micro-batches of `split`.
        host_generator: generator of the noise levels, shared likewise; made from `generator` if None.
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        local_rows: slice,
        global_rows: int,
        subset: slice | None = None,
        shared: list[Tensor] | None = None,
        host_generator: torch.Generator | None = None,
    ) -> None:
        self._generator, self._local_rows, self._global_rows = generator, local_rows, global_rows
        self._host_generator = host_generator or _make_host_generator(generator)
        self._subset, self._shared, self._num_taken = subset or slice(None), shared, 0

    def split(self, slices: Sequence[slice]) -> list[RowRng]:
        """Return one `RowRng` per slice of the worker's rows; call the same methods on each in the same order."""
        shared: list[Tensor] | None = [] if len(slices) > 1 else None
        return [
            RowRng(
                self._generator,
                local_rows=self._local_rows,
                global_rows=self._global_rows,
                subset=subset,
                shared=shared,
                host_generator=self._host_generator,
            )
            for subset in slices
        ]

    def sample_sigma(self, p: NoiseDistribution) -> Tensor:
        """Sample noise levels [B] from p, fp32, on the device of the rows."""
        return self.send(self.sample_host_sigma(p))

    def sample_host_sigma(self, p: NoiseDistribution) -> Tensor:
        """Sample the same noise levels [B] as `sample_sigma`, but return them on the CPU."""
        rng = self._host_generator
        u = self._next(lambda: torch.rand(self._global_rows, generator=rng, dtype=torch.float64)[self._local_rows])
        return p.quantile(u[self._subset]).float()

    def send(self, values: Tensor | Sequence[int]) -> Tensor:
        """Return values of the host as a tensor on the device of the rows, without waiting for it."""
        return send(values, self._generator.device)

    def add_noise(self, x0: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 + sigma eps with eps ~ N(0, I); x0: [B, C, T], sigma: [B]."""
        rng, shape = self._generator, (self._global_rows, *x0.shape[1:])
        eps = self._next(lambda: torch.randn(shape, generator=rng, device=x0.device, dtype=x0.dtype)[self._local_rows])
        return x0 + sigma[:, None, None].to(x0.dtype) * eps[self._subset]

    def sample_index(self, n: int) -> int:
        """Sample an index in 0 ... n - 1, the same for all rows of the global batch."""
        return int(self._next(lambda: torch.randint(n, (1,), generator=self._host_generator)))

    def _next(self, draw: Callable[[], Tensor]) -> Tensor:
        if self._shared is None:
            return draw()
        if self._num_taken == len(self._shared):
            self._shared.append(draw().clone())  # a slice would keep the memory of other workers' rows
        self._num_taken += 1
        return self._shared[self._num_taken - 1]


def _make_host_generator(generator: torch.Generator) -> torch.Generator:
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(generator.initial_seed())
