"""EDM preconditioning: a raw network becomes a denoiser D(x; sigma, cond) -> x0 (METHOD section 1)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning


class Denoiser(Protocol):
    """What losses and samplers take: any estimate of clean latents from noisy ones."""

    def __call__(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: int | Tensor | None = None
    ) -> Tensor:
        """x: [B, C, T] noisy latents, sigma: [B] -> x0: [B, C, T] fp32.

        `budget`: blocks of the network that run, for all samples or for each: [B]; None runs all of them.
        """
        ...


class EDMDenoiser:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma)/4) (Karras et al. 2022, equation 7), combined in fp32.

    Args:
        net: raw network F(x_scaled, c_noise, cond, budget); may be wrapped for data parallelism.
        sigma_data: standard deviation of the normalised latents.
        autocast_dtype: reduced precision inside the network only; None keeps fp32.
    """

    def __init__(self, net: nn.Module, sigma_data: float, autocast_dtype: torch.dtype | None = None) -> None:
        self.net = net
        self.sigma_data = sigma_data
        self.autocast_dtype = autocast_dtype

    def __call__(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: int | Tensor | None = None
    ) -> Tensor:
        # D(x; sigma, c, b) = c_skip x + c_out F(c_in x; c_noise, c, b)
        c_skip, c_out, c_in, c_noise = preconditioning(sigma, self.sigma_data)
        with self._autocast(x.device):
            raw = self.net(c_in * x, c_noise, cond, budget)
        return c_skip * x + c_out * raw.float()

    def denoise_with_hidden(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: int | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x0 as a call gives it, and what the last block that ran gave: [B, N, D] fp32."""
        c_skip, c_out, c_in, c_noise = preconditioning(sigma, self.sigma_data)
        with self._autocast(x.device):
            raw, hidden = self.net(c_in * x, c_noise, cond, budget, with_hidden=True)
        return c_skip * x + c_out * raw.float(), hidden.float()

    def extract_features(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None, *, taps: tuple[int, ...]
    ) -> list[Tensor]:
        """Activations [B, D, N] fp32 after the blocks `taps`; blocks behind the last tap are not run."""
        _, _, c_in, c_noise = preconditioning(sigma, self.sigma_data)
        with self._autocast(x.device):
            activations = self.net(c_in * x, c_noise, cond, taps=taps)
        return [a.float() for a in activations]

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)


def preconditioning(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in as [B, 1, 1] and c_noise as [B], fp32, for sigma: [B] (EDM, table 1)."""
    sigma = sigma.float()
    s = sigma[:, None, None]
    total = s**2 + sigma_data**2
    return sigma_data**2 / total, s * sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


def add_noise(x0: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """x0 + sigma * eps with eps ~ N(0, I); x0: [B, C, T], sigma: [B]."""
    eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return x0 + sigma[:, None, None].to(x0.dtype) * eps


def denoise_at(
    denoise: Denoiser, x: Tensor, sigma: float, cond: Conditioning | None, budget: Callable[[float], int] | None
) -> Tensor:
    """x: [B, C, T] denoised at one noise level, with as many blocks as `budget` gives that level (None: all)."""
    return denoise(x, full_sigma(sigma, x), cond, None if budget is None else budget(sigma))


def full_sigma(sigma: float, x: Tensor) -> Tensor:
    """One noise level for a whole batch x: [B, C, T] -> [B]."""
    return torch.full((x.shape[0],), sigma, device=x.device, dtype=x.dtype)
