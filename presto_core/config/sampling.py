"""Configuration of sampling: noise levels, samplers, and `generate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from presto_core.config.section import Count, Positive, Section


class ScheduleConfig(Section):
    """Noise levels that a sampler visits (EDM, equation 5)."""

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0


class RolloutConfig(ScheduleConfig):
    """The few-step trajectory that `generator_input: rollout` follows."""

    steps: Count = 4


class BaseSampler(Section):
    """One way to sample the teacher or a layer-distilled model."""

    sampler: Literal["euler", "heun", "dpmpp_2m"] = "dpmpp_2m"
    steps: Count = 40
    guidance_scale: float = Field(1.0, ge=0)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample; guidance needs two per denoised estimate."""
        denoiser_calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return denoiser_calls * (1 if self.guidance_scale == 1 else 2)


class GenerateConfig(Section):
    prompts: tuple[str, ...] = ()
    steps: Count = 4
    seconds: Positive | None = None
    """Length of a clip; empty means the length that the model was trained on."""
    schedule: ScheduleConfig | None = None
    """Noise levels; empty takes those that the model stores for this number of steps, else sigma 80 to 0.002, rho 7."""
    tempo_bpm: float | None = None
    key: str | None = None
    output: str = ".presto/out"
    seed: int = 0
