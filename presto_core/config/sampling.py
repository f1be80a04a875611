"""Configuration of sampling: noise levels, samplers, and `generate`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from presto_core.config.section import Count, Section

# beyond these, latents of unit variance vanish in the noise of fp32, or the powers of EDM's equation 5 overflow
Sigma = Annotated[float, Field(ge=1e-6, le=1e4)]
Rho = Annotated[float, Field(ge=0.1, le=1e3)]
MIN_TEMPO_BPM, MAX_TEMPO_BPM = 20.0, 400.0
MAX_SEED = 2**63 - 1  # what MLflow's parameters and JSON readers hold


class ScheduleConfig(Section):
    """Noise levels that a sampler visits (EDM, equation 5)."""

    sigma_min: Sigma = 0.002
    """Lowest noise level; below sigma_max."""
    sigma_max: Sigma = 80.0
    """Noise level that sampling starts from."""
    rho: Rho = 7.0
    """Curvature: the larger, the more of the steps are at low noise."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        return self


class RolloutConfig(ScheduleConfig):
    """The few-step trajectory that `generator_input: rollout` follows."""

    steps: Count = 4
    """Steps of the trajectory."""


class BaseSampler(Section):
    """One way to sample the teacher or a layer-distilled model."""

    sampler: Literal["euler", "heun", "dpmpp_2m"] = "dpmpp_2m"
    """Solver of the probability-flow ODE."""
    steps: Count = 40
    """Steps from the highest noise level to the lowest."""
    guidance_scale: float = Field(1.0, ge=0)
    """Weight w of classifier-free guidance; 1 is none."""

    @property
    def nfe(self) -> int:
        """Network evaluations per sample; guidance needs two per denoised estimate."""
        denoiser_calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return denoiser_calls * (1 if self.guidance_scale == 1 else 2)


class GenerateConfig(Section):
    """What to play, how, and where the clips go."""

    prompts: tuple[str, ...] = ()
    """What to play, one clip each; the command takes them as arguments or with --prompt."""
    prompts_file: str = ""
    """CSV or JSON lines with a clip per row: prompt and, where they differ, seed, steps, seconds, tempo_bpm, key."""
    steps: int = Field(4, ge=1, le=1000)
    """Steps of the sampler; a few-step generator needs 1 to 8, a teacher about 40."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Another seed plays another clip for the same prompt; the same seed gives the same bits again."""
    seconds: float | None = Field(None, gt=0, le=3600)
    """Length of a clip, exactly; empty means the length that the model was trained on."""
    key: str | None = None
    """Key in any spelling, such as Dm, 'C# minor' or 'B♭ major'; empty takes the one in the prompt."""
    tempo_bpm: float | None = Field(None, ge=MIN_TEMPO_BPM, le=MAX_TEMPO_BPM)
    """Beats per minute; empty takes the tempo in the prompt, such as 120.5 bpm."""
    schedule: ScheduleConfig | None = None
    """Noise levels; empty takes those that the model stores for this number of steps, else sigma 80 to 0.002, rho 7."""
    output: str = ".presto/out"
    """Folder of the clips; their names tell prompt, steps and seed, and no clip replaces another."""

    @field_validator("output")
    @classmethod
    def _check_folder(cls, value: str) -> str:
        if "://" in value or not value.strip():
            raise ValueError(f"output={value!r} must be a folder of this machine; write one such as .presto/out")
        return value
