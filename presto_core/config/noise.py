"""Configuration of noise distributions p(sigma): what each role of METHOD section 2 draws its noise level from."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from presto_core.config.section import Section

S = TypeVar("S", bound=Section)
Sigma = Annotated[float, Field(gt=0)]


def _require_ordered(section: S, low: str, high: str) -> S:
    if getattr(section, low) >= getattr(section, high):
        raise ValueError(f"{low}={getattr(section, low)} must be below {high}={getattr(section, high)}")
    return section


class LogNormalNoise(Section):
    """ln sigma ~ N(mean, std^2): the training distribution sigma^train (EDM, Karras et al. 2022, table 1)."""

    kind: Literal["lognormal"] = "lognormal"
    mean: float = -0.4
    std: Sigma = 1.0


class KarrasNoise(Section):
    """The EDM schedule with u ~ U(0,1): the inference distribution sigma^inf (Presto, figure 1)."""

    kind: Literal["karras"] = "karras"
    sigma_min: Sigma = 0.002
    sigma_max: Sigma = 80.0
    rho: Sigma = 7.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _require_ordered(self, "sigma_min", "sigma_max")


class GridNoise(Section):
    """The `num_steps` noise levels a few-step sampler visits: the discrete baseline for p_gen."""

    kind: Literal["grid"] = "grid"
    num_steps: int = Field(4, ge=1)
    sigma_min: Sigma = 0.002
    sigma_max: Sigma = 80.0
    rho: Sigma = 7.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _require_ordered(self, "sigma_min", "sigma_max")


class LogUniformNoise(Section):
    """ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    kind: Literal["log_uniform"] = "log_uniform"
    sigma_min: Sigma = 0.002
    sigma_max: Sigma = 80.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _require_ordered(self, "sigma_min", "sigma_max")


SimpleNoise = Annotated[
    LogNormalNoise | KarrasNoise | GridNoise | LogUniformNoise,
    Field(discriminator="kind"),
]


class TruncatedNoise(Section):
    """Another distribution, conditioned on sigma_low <= sigma <= sigma_high."""

    kind: Literal["truncated"] = "truncated"
    base: SimpleNoise = LogNormalNoise()
    sigma_low: Sigma = 0.002
    sigma_high: Sigma = 80.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _require_ordered(self, "sigma_low", "sigma_high")


ComponentNoise = Annotated[
    LogNormalNoise | KarrasNoise | GridNoise | LogUniformNoise | TruncatedNoise,
    Field(discriminator="kind"),
]


class MixtureNoise(Section):
    """Draws from one of `components`, chosen with probability proportional to `weights`."""

    kind: Literal["mixture"] = "mixture"
    components: tuple[ComponentNoise, ...] = (LogNormalNoise(), KarrasNoise())
    weights: tuple[Sigma, ...] = (0.5, 0.5)

    @model_validator(mode="after")
    def _one_weight_a_component(self) -> Self:
        if not self.components or len(self.weights) != len(self.components):
            raise ValueError(
                f"a mixture needs one weight a component: {len(self.components)} components, "
                f"{len(self.weights)} weights"
            )
        return self


NoiseConfig = Annotated[
    LogNormalNoise | KarrasNoise | GridNoise | LogUniformNoise | TruncatedNoise | MixtureNoise,
    Field(discriminator="kind"),
]
