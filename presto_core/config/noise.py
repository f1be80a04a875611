"""Noise distributions p(sigma): settings, quantile function and cumulative distribution in one class each.

Each role of METHOD section 2 (p_gen, p_dmd, p_dsm, p_gan) draws its noise levels from one of them. Sampling is the
quantile of a uniform number; all else follows from quantile and cdf. PyTorch is imported where numbers are computed,
so that reading a configuration never waits for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from presto_core.config.section import Section
from presto_core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

S = TypeVar("S", bound=Section)
Sigma = Annotated[float, Field(gt=0)]
BISECTION_STEPS = 80  # halves ln(sigma) in [-25, 25] to below fp64 resolution


class NoiseDistribution(Section):
    """A distribution over noise levels sigma > 0."""

    def quantile(self, u: Tensor) -> Tensor:
        """sigma below which a share `u` in [0, 1] of the draws lies; same shape, fp64."""
        raise NotImplementedError

    def cdf(self, sigma: Tensor) -> Tensor:
        """Share of draws at or below `sigma`; same shape, fp64."""
        raise NotImplementedError

    def levels(self) -> Tensor | None:
        """All levels, [n] fp64 and ascending, if there are finitely many and all are equally likely; otherwise None."""
        return None

    def sample(self, n: int, *, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """n independent noise levels: [n] fp32 on `device`, drawn from `generator` (which must live there)."""
        import torch

        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        return self.quantile(u).float()

    def to_config(self) -> dict[str, Any]:
        """The settings as plain data, for a manifest."""
        return self.model_dump(mode="json")


def _check_increasing(section: S, low: str, high: str) -> S:
    if getattr(section, low) >= getattr(section, high):
        raise ValueError(f"{low}={getattr(section, low)} must be below {high}={getattr(section, high)}")
    return section


class LogNormalNoise(NoiseDistribution):
    """ln sigma ~ N(mean, std^2): the training distribution sigma^train (EDM, Karras et al. 2022, table 1)."""

    kind: Literal["lognormal"] = "lognormal"
    mean: float = -0.4
    """Mean of ln sigma."""
    std: Sigma = 1.0
    """Standard deviation of ln sigma."""

    def quantile(self, u: Tensor) -> Tensor:
        import torch

        # sigma = exp(mean + std * Phi^-1(u)); u = 0 (probability 2^-53) would give sigma = 0
        return torch.exp(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-16, 1 - 1e-16)))

    def cdf(self, sigma: Tensor) -> Tensor:
        import torch

        return torch.special.ndtr((sigma.double().log() - self.mean) / self.std)


class KarrasNoise(NoiseDistribution):
    """The EDM schedule with u ~ U(0,1): the inference distribution sigma^inf (Presto, figure 1; EDM, equation 5)."""

    kind: Literal["karras"] = "karras"
    sigma_min: Sigma = 0.002
    """Lowest noise level; below sigma_max."""
    sigma_max: Sigma = 80.0
    """Highest noise level."""
    rho: Sigma = 7.0
    """Curvature of the schedule: larger values make more of the levels low."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        return _check_increasing(self, "sigma_min", "sigma_max")

    def quantile(self, u: Tensor) -> Tensor:
        # sigma^(1/rho) is uniform between sigma_min^(1/rho) and sigma_max^(1/rho)
        low, high = self._ends()
        return (low + u.double() * (high - low)) ** self.rho

    def cdf(self, sigma: Tensor) -> Tensor:
        low, high = self._ends()
        return ((sigma.double() ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


class GridNoise(NoiseDistribution):
    """The `num_steps` noise levels a few-step sampler visits, equally likely: the discrete baseline for p_gen."""

    kind: Literal["grid"] = "grid"
    num_steps: int = Field(4, ge=1)
    """Number of levels."""
    sigma_min: Sigma = 0.002
    """Lowest noise level; below sigma_max."""
    sigma_max: Sigma = 80.0
    """Highest noise level."""
    rho: Sigma = 7.0
    """Curvature of the schedule: larger values make more of the levels low."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        return _check_increasing(self, "sigma_min", "sigma_max")

    def levels(self) -> Tensor:
        """[num_steps] fp64, ascending; the same levels as samplers.schedule.few_step_sigmas."""
        import torch

        u = 1 - torch.arange(self.num_steps, dtype=torch.float64) / self.num_steps
        karras = KarrasNoise(sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        return karras.quantile(u).flip(0)

    def quantile(self, u: Tensor) -> Tensor:
        index = (u.double() * self.num_steps).long().clamp(max=self.num_steps - 1)
        return self.levels().to(u.device)[index]

    def cdf(self, sigma: Tensor) -> Tensor:
        import torch

        levels = self.levels().to(sigma.device)
        return torch.searchsorted(levels, sigma.double().contiguous(), right=True).double() / self.num_steps


class LogUniformNoise(NoiseDistribution):
    """ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    kind: Literal["log_uniform"] = "log_uniform"
    sigma_min: Sigma = 0.002
    """Lowest noise level; below sigma_max."""
    sigma_max: Sigma = 80.0
    """Highest noise level."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        return _check_increasing(self, "sigma_min", "sigma_max")

    def quantile(self, u: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low + u.double() * (high - low)).exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return ((sigma.double().log() - low) / (high - low)).clamp(0, 1)


class TimeUniformNoise(NoiseDistribution):
    """A network's time t ~ U(time_min, time_max): sigma = t / (1 - t) in flow time, tan(pi t / 2) in cosine time.

    A logit-normal t in flow time is `lognormal`, since ln sigma = logit t, and an even log-SNR grid is `log_uniform`.
    """

    kind: Literal["time_uniform"] = "time_uniform"
    clock: Literal["flow", "cosine"] = "flow"
    """Time of a flow-matching network, or of v-prediction in the cosine schedule."""
    time_min: float = Field(0.001, gt=0, lt=1)
    """Earliest time; below time_max."""
    time_max: float = Field(0.999, gt=0, lt=1)
    """Latest time, with the highest noise."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        return _check_increasing(self, "time_min", "time_max")

    def quantile(self, u: Tensor) -> Tensor:
        time = self.time_min + u.double() * (self.time_max - self.time_min)
        return time / (1 - time) if self.clock == "flow" else (time * (math.pi / 2)).tan()

    def cdf(self, sigma: Tensor) -> Tensor:
        sigma = sigma.double()
        time = sigma / (1 + sigma) if self.clock == "flow" else sigma.atan() * (2 / math.pi)
        return ((time - self.time_min) / (self.time_max - self.time_min)).clamp(0, 1)


class LevelsNoise(NoiseDistribution):
    """An explicit list of noise levels, equally likely, such as those that another program's sampler visits."""

    kind: Literal["levels"] = "levels"
    sigmas: tuple[Sigma, ...] = (80.0, 9.7, 0.87, 0.04)
    """The levels, in any order."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if not self.sigmas or len(set(self.sigmas)) < len(self.sigmas):
            raise ValueError(f"sigmas={list(self.sigmas)} must be at least one level, and none twice")
        return self

    def levels(self) -> Tensor:
        """[n] fp64, ascending."""
        import torch

        return torch.tensor(sorted(self.sigmas), dtype=torch.float64)

    def quantile(self, u: Tensor) -> Tensor:
        count = len(self.sigmas)
        return self.levels().to(u.device)[(u.double() * count).long().clamp(max=count - 1)]

    def cdf(self, sigma: Tensor) -> Tensor:
        import torch

        # levels are drawn in fp32, where one may lie just above its fp64 value
        levels = self.levels().float().to(sigma.device)
        return torch.searchsorted(levels, sigma.float().contiguous(), right=True).double() / len(levels)


SimpleNoise = Annotated[
    LogNormalNoise | KarrasNoise | GridNoise | LogUniformNoise | TimeUniformNoise | LevelsNoise,
    Field(discriminator="kind"),
]


class TruncatedNoise(NoiseDistribution):
    """Another distribution, conditioned on sigma_low <= sigma <= sigma_high."""

    kind: Literal["truncated"] = "truncated"
    base: SimpleNoise = LogNormalNoise()
    """The distribution that is truncated."""
    sigma_low: Sigma = 0.002
    """Lower end; below sigma_high."""
    sigma_high: Sigma = 80.0
    """Upper end."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        return _check_increasing(self, "sigma_low", "sigma_high")

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self._mass()
        # the clamp only repairs rounding at the ends
        return self.base.quantile(low + u.double() * (high - low)).clamp(self.sigma_low, self.sigma_high)

    def cdf(self, sigma: Tensor) -> Tensor:
        import torch

        low, high = self._mass()
        inside = (self.base.cdf(sigma) - low) / (high - low)
        return torch.where(sigma < self.sigma_low, 0.0, inside.clamp(0, 1))

    def levels(self) -> Tensor | None:
        levels = self.base.levels()  # conditioned on lying within, what is equally likely stays so
        return None if levels is None else levels[(levels > self.sigma_low) & (levels <= self.sigma_high)]

    def _mass(self) -> tuple[float, float]:
        import torch

        ends = self.base.cdf(torch.tensor([self.sigma_low, self.sigma_high], dtype=torch.float64))
        low, high = ends.tolist()
        if high - low < 1e-12:
            raise UserError(
                f"truncated noise keeps nothing: {self.base!r} has no mass in "
                f"[{self.sigma_low}, {self.sigma_high}]; widen sigma_low or sigma_high"
            )
        return low, high


ComponentNoise = Annotated[
    LogNormalNoise | KarrasNoise | GridNoise | LogUniformNoise | TimeUniformNoise | LevelsNoise | TruncatedNoise,
    Field(discriminator="kind"),
]


class MixtureNoise(NoiseDistribution):
    """Draws from component i of `components` with probability weights[i] / sum(weights)."""

    kind: Literal["mixture"] = "mixture"
    components: tuple[ComponentNoise, ...] = (LogNormalNoise(), KarrasNoise())
    """Distributions, each written as a section with its kind."""
    weights: tuple[Sigma, ...] = (0.5, 0.5)
    """One weight per component; they need not sum to 1."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.components or len(self.weights) != len(self.components):
            raise ValueError(
                f"a mixture needs one weight per component: {len(self.components)} components, "
                f"{len(self.weights)} weights"
            )
        return self

    def quantile(self, u: Tensor) -> Tensor:
        import torch

        # no closed form: bisect ln sigma on the cdf, which never decreases
        low = torch.full_like(u, -25.0, dtype=torch.float64)
        high = torch.full_like(u, 25.0, dtype=torch.float64)
        for _ in range(BISECTION_STEPS):
            middle = (low + high) / 2
            below = self.cdf(middle.exp()) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        import torch

        total = sum(self.weights)
        return torch.stack([w / total * c.cdf(sigma) for w, c in zip(self.weights, self.components)]).sum(0)


NoiseConfig = Annotated[
    LogNormalNoise
    | KarrasNoise
    | GridNoise
    | LogUniformNoise
    | TimeUniformNoise
    | LevelsNoise
    | TruncatedNoise
    | MixtureNoise,
    Field(discriminator="kind"),
]
