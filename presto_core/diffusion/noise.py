"""Noise distributions p(sigma), one object per role (METHOD section 2): sampling is the quantile of a uniform.

Each distribution is its quantile function and its cumulative distribution; everything else follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from presto_core.config import noise as config
from presto_core.errors import UserError

BISECTION_STEPS = 80  # halves ln(sigma) in [-25, 25] to below fp64 resolution


@dataclass(frozen=True)
class NoiseDistribution:
    """A distribution over noise levels sigma > 0."""

    def quantile(self, u: Tensor) -> Tensor:
        """sigma below which a share `u` in [0, 1] of the draws lies; same shape, fp64."""
        raise NotImplementedError

    def cdf(self, sigma: Tensor) -> Tensor:
        """Share of draws at or below `sigma`; same shape, fp64."""
        raise NotImplementedError

    def sample(self, n: int, *, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """n independent noise levels: [n] fp32 on `device`, drawn from `generator` (which must live there)."""
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        return self.quantile(u).float()

    def to_config(self) -> dict[str, Any]:
        """The settings that `noise_from_config` rebuilds this distribution from."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogNormal(NoiseDistribution):
    """ln sigma ~ N(mean, std^2): sigma^train (EDM, Karras et al. 2022, table 1)."""

    mean: float
    std: float

    def quantile(self, u: Tensor) -> Tensor:
        # u = 0 (probability 2^-53) would give sigma = 0
        return torch.exp(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-16, 1 - 1e-16)))

    def cdf(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.double().log() - self.mean) / self.std)

    def to_config(self) -> dict[str, Any]:
        return {"kind": "lognormal", "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class KarrasInference(NoiseDistribution):
    """sigma^(1/rho) uniform between sigma_min^(1/rho) and sigma_max^(1/rho): sigma^inf (EDM, equation 5)."""

    sigma_min: float
    sigma_max: float
    rho: float

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + u.double() * (high - low)) ** self.rho

    def cdf(self, sigma: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((sigma.double() ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def to_config(self) -> dict[str, Any]:
        return {
            "kind": "karras",
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
        }


@dataclass(frozen=True)
class DiscreteGrid(NoiseDistribution):
    """The `num_steps` inputs of a few-step sampler, equally likely: the discrete-input ablation of Presto."""

    num_steps: int
    sigma_min: float
    sigma_max: float
    rho: float

    def levels(self) -> Tensor:
        """[num_steps] fp64, ascending; the same levels as samplers.schedule.few_step_sigmas."""
        u = 1 - torch.arange(self.num_steps, dtype=torch.float64) / self.num_steps
        return KarrasInference(self.sigma_min, self.sigma_max, self.rho).quantile(u).flip(0)

    def quantile(self, u: Tensor) -> Tensor:
        index = (u.double() * self.num_steps).long().clamp(max=self.num_steps - 1)
        return self.levels().to(u.device)[index]

    def cdf(self, sigma: Tensor) -> Tensor:
        levels = self.levels().to(sigma.device)
        return torch.searchsorted(levels, sigma.double().contiguous(), right=True).double() / self.num_steps

    def to_config(self) -> dict[str, Any]:
        karras = KarrasInference(self.sigma_min, self.sigma_max, self.rho).to_config()
        return karras | {"kind": "grid", "num_steps": self.num_steps}


@dataclass(frozen=True)
class LogUniform(NoiseDistribution):
    """ln sigma uniform between the logarithms of sigma_min and sigma_max."""

    sigma_min: float
    sigma_max: float

    def quantile(self, u: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + u.double() * (high - low))

    def cdf(self, sigma: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return ((sigma.double().log() - low) / (high - low)).clamp(0, 1)

    def to_config(self) -> dict[str, Any]:
        return {"kind": "log_uniform", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


@dataclass(frozen=True)
class Truncated(NoiseDistribution):
    """`base` conditioned on sigma_low <= sigma <= sigma_high."""

    base: NoiseDistribution
    sigma_low: float
    sigma_high: float

    def _mass(self) -> tuple[float, float]:
        ends = self.base.cdf(torch.tensor([self.sigma_low, self.sigma_high], dtype=torch.float64))
        low, high = ends.tolist()
        if high - low < 1e-12:
            raise UserError(
                f"truncated noise keeps nothing: {self.base} has no mass in "
                f"[{self.sigma_low}, {self.sigma_high}]; widen sigma_low or sigma_high"
            )
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self._mass()
        # the clamp only repairs rounding at the ends
        return self.base.quantile(low + u.double() * (high - low)).clamp(self.sigma_low, self.sigma_high)

    def cdf(self, sigma: Tensor) -> Tensor:
        low, high = self._mass()
        inside = (self.base.cdf(sigma) - low) / (high - low)
        return torch.where(sigma < self.sigma_low, 0.0, inside.clamp(0, 1))

    def to_config(self) -> dict[str, Any]:
        return {
            "kind": "truncated",
            "base": self.base.to_config(),
            "sigma_low": self.sigma_low,
            "sigma_high": self.sigma_high,
        }


@dataclass(frozen=True)
class Mixture(NoiseDistribution):
    """Draws from component i with probability weights[i] / sum(weights)."""

    components: tuple[NoiseDistribution, ...]
    weights: tuple[float, ...]

    def quantile(self, u: Tensor) -> Tensor:
        # No closed form: bisect ln sigma on the cdf, which never decreases.
        low = torch.full_like(u, -25.0, dtype=torch.float64)
        high = torch.full_like(u, 25.0, dtype=torch.float64)
        for _ in range(BISECTION_STEPS):
            middle = (low + high) / 2
            below = self.cdf(middle.exp()) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        total = sum(self.weights)
        return torch.stack([w / total * c.cdf(sigma) for w, c in zip(self.weights, self.components)]).sum(0)

    def to_config(self) -> dict[str, Any]:
        return {
            "kind": "mixture",
            "components": [c.to_config() for c in self.components],
            "weights": list(self.weights),
        }


def noise_from_config(section: config.NoiseConfig) -> NoiseDistribution:
    """The distribution a configuration section describes."""
    return _BUILDERS[section.kind](section)


_BUILDERS: dict[str, Callable[[Any], NoiseDistribution]] = {
    "lognormal": lambda c: LogNormal(c.mean, c.std),
    "karras": lambda c: KarrasInference(c.sigma_min, c.sigma_max, c.rho),
    "grid": lambda c: DiscreteGrid(c.num_steps, c.sigma_min, c.sigma_max, c.rho),
    "log_uniform": lambda c: LogUniform(c.sigma_min, c.sigma_max),
    "truncated": lambda c: Truncated(noise_from_config(c.base), c.sigma_low, c.sigma_high),
    "mixture": lambda c: Mixture(tuple(noise_from_config(p) for p in c.components), cast(Any, c.weights)),
}


def snr_db(sigma: Tensor, sigma_data: float) -> Tensor:
    """Signal-to-noise ratio 20 log10(sigma_data / sigma) in decibel: the axis of the paper's figure 1."""
    return 20 * torch.log10(sigma_data / sigma)
