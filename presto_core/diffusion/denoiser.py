"""The denoiser D(x; sigma, cond) -> x0 that a precondition makes of a raw network (METHOD section 1)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.preconditions import Coefficients, Edm, Precondition, to_precondition

Budget = int | tuple[int, ...] | Tensor
"""Blocks that run: for all samples, or for each [B]. A tensor is read, which waits for a GPU; a tuple is not."""


class Denoiser(Protocol):
    """The interface of losses and samplers: an estimate of clean latents from noisy ones."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        """Return x0: [B, C, T] fp32 for noisy latents x: [B, C, T] at noise levels sigma: [B].

        `budget` is the number of blocks that run, for all samples or for each: [B]; None runs all.
        """
        ...


class EDMDenoiser:
    """D(x; sigma) = c_skip x + c_out F(c_in x; time), combined in fp32 (EDM, Karras et al. 2022, eq. 7).

    Args:
        net: raw network F(x_scaled, time, cond, budget); may be wrapped for data parallelism.
        precondition: parameterisation of the network; a number is sigma_data, the standard deviation of the normalised
            latents in EDM's.
        autocast_dtype: reduced precision inside the network only; None keeps fp32.
    """

    def __init__(
        self, net: nn.Module, precondition: Precondition | float, autocast_dtype: torch.dtype | None = None
    ) -> None:
        self.net = net
        self.precondition = to_precondition(precondition)
        self.autocast_dtype = autocast_dtype

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        # EDM, eq. 7, with conditions c and budget b: D(x; sigma, c, b) = c_skip x + c_out F(c_in x; time, c, b)
        c_skip, c_out, c_in, time = self.precondition(sigma)
        with self._autocast(x.device):
            raw = self.net(c_in * x, time, cond, budget)
        return c_skip * x + c_out * raw.to(c_out.dtype)

    def denoise_with_hidden(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None
    ) -> tuple[Tensor, Tensor]:
        """Return x0 as `__call__` does, and the output of the last block that runs: [B, N, D] fp32."""
        c_skip, c_out, c_in, time = self.precondition(sigma)
        with self._autocast(x.device):
            raw, hidden = self.net(c_in * x, time, cond, budget, with_hidden=True)
        return c_skip * x + c_out * raw.to(c_out.dtype), hidden.float()

    def extract_features(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, *, taps: tuple[int, ...]
    ) -> list[Tensor]:
        """Return activations [B, D, N] fp32 after the blocks `taps`; blocks after the last tap do not run."""
        _, _, c_in, time = self.precondition(sigma)
        with self._autocast(x.device):
            activations = self.net(c_in * x, time, cond, taps=taps)
        return [a.float() for a in activations]

    def denoise_with_features(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, *, taps: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return x0 as `__call__` does, and the activations of `extract_features`, in one pass."""
        c_skip, c_out, c_in, time = self.precondition(sigma)
        with self._autocast(x.device):
            raw, activations = self.net(c_in * x, time, cond, taps=taps, with_output=True)
        return c_skip * x + c_out * raw.to(c_out.dtype), [a.float() for a in activations]

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)


class LevelDenoiser:
    """One denoiser between two noise levels, another at all others.

    A sampler, whose rows share a level, evaluates only that of its level (`at_level`). Called with a level per row, it
    evaluates both for all rows and picks, so that no device is waited for.

    Args:
        inside: denoiser of levels low < sigma <= high.
        outside: denoiser of the others.
    """

    def __init__(self, inside: Denoiser, outside: Denoiser, low: float, high: float) -> None:
        self.inside, self.outside, self.low, self.high = inside, outside, low, high

    def at_level(self, sigma: float) -> Denoiser:
        """Return the denoiser of a noise level."""
        return self.inside if self.low < sigma <= self.high else self.outside

    def wrap(self, wrap: Callable[[Denoiser], Denoiser]) -> LevelDenoiser:
        """Return it with both denoisers wrapped, so that still only that of its level is evaluated."""
        return LevelDenoiser(wrap(self.inside), wrap(self.outside), self.low, self.high)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        is_inside = ((sigma > self.low) & (sigma <= self.high)).view(-1, *[1] * (x.ndim - 1))
        return torch.where(is_inside, self.inside(x, sigma, cond, budget), self.outside(x, sigma, cond, budget))


def preconditioning(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return EDM's c_skip, c_out, c_in as [B, 1, 1] and c_noise as [B], fp32, for sigma: [B]."""
    return Edm(sigma_data)(sigma)


def add_noise(x0: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return x0 + sigma eps with eps ~ N(0, I); x0: [B, C, T], sigma: [B]."""
    eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return x0 + sigma[:, None, None].to(x0.dtype) * eps


def denoise_at(
    denoise: Denoiser, x: Tensor, sigma: float, cond: Conditioning | None, budget: Callable[[float], int] | None
) -> Tensor:
    """Denoise x: [B, C, T] at one noise level with the number of blocks that `budget` returns for it (None: all)."""
    denoise = denoise.at_level(sigma) if isinstance(denoise, LevelDenoiser) else denoise
    return denoise(x, full_sigma(sigma, x), cond, None if budget is None else budget(sigma))


def full_sigma(sigma: float, x: Tensor) -> Tensor:
    """Return one noise level for every sample of x: [B, C, T] -> [B]."""
    return torch.full((x.shape[0],), sigma, device=x.device, dtype=x.dtype)
