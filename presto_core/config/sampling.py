"""Configuration of sampling: noise levels, samplers, `generate` and `edit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from presto_core.config.section import Count, Fraction, Section

# beyond these, latents of unit variance vanish in the noise of fp32, or the powers of EDM's equation 5 overflow
Sigma = Annotated[float, Field(ge=1e-6, le=1e4)]
Level = Annotated[float, Field(ge=1e-6, le=1e9)]  # of a list: flow models start from noise alone, at 1e8 or so
Rho = Annotated[float, Field(ge=0.1, le=1e3)]
GuidanceInterval = tuple[Annotated[float, Field(ge=0, le=1e9)], Annotated[float, Field(gt=0, le=1e9)]]
MIN_TEMPO_BPM, MAX_TEMPO_BPM = 20.0, 400.0
MAX_SEED = 2**63 - 1  # what MLflow's parameters and JSON readers hold


class ScheduleConfig(Section):
    """Noise levels that a sampler visits (EDM, equation 5)."""

    sigma_min: Sigma = 0.002
    """Lowest noise level; below sigma_max."""
    sigma_max: Sigma = 80.0
    """Noise level that sampling starts from."""
    rho: Rho = 7.0
    """Curvature: larger values put more of the steps at low noise."""
    sigmas: tuple[Level, ...] = ()
    """The noise levels themselves, in falling order, one per step, such as those of another program's sampler; empty
    computes them from the other settings."""

    @property
    def highest(self) -> float:
        """Noise level that sampling starts from."""
        return self.sigmas[0] if self.sigmas else self.sigma_max

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        if any(high <= low for high, low in zip(self.sigmas, self.sigmas[1:])):
            raise ValueError(f"sigmas={list(self.sigmas)} must fall from each step to the next")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_no_levels(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a list as before there were any, so that ids and names of clips stand."""
        content: dict[str, Any] = serialize(self)
        if not content.get("sigmas"):
            content.pop("sigmas", None)
        return content


class RolloutConfig(ScheduleConfig):
    """The few-step trajectory that `generator_input: rollout` follows."""

    steps: Count = 4
    """Steps of the trajectory."""


def check_restraints(scale: float, interval: tuple[float, float] | None, rescale: float) -> None:
    """Refuse restraints of guidance that are out of range, or without effect at its scale; raises ValueError."""
    low, high = interval or (0.0, math.inf)
    if interval is not None and not 0 <= low < high < math.inf:
        raise ValueError(f"guidance_interval=[{low:g}, {high:g}] must rise: lowest noise level first")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale={rescale:g} must be from 0 to 1")
    for name, value in (("guidance_interval", interval), ("guidance_rescale", rescale)):
        if value and scale in (0, 1):
            raise ValueError(
                f"{name} has no effect with guidance_scale={scale:g}; set that above 1, or leave out {name}"
            )


def check_levels(interval: tuple[float, float] | None, sigmas: Sequence[float]) -> None:
    """Refuse an interval of guidance that has none of the noise levels [steps + 1] down to 0; raises ValueError."""
    if interval is not None and not any(interval[0] < sigma <= interval[1] for sigma in sigmas[:-1]):
        raise ValueError(
            f"guidance_interval=[{interval[0]:g}, {interval[1]:g}] has none of the noise levels of these steps, "
            f"{sigmas[-2]:.3g} to {sigmas[0]:.3g}: guidance would do nothing; widen it, or leave out guidance"
        )


class BaseSampler(Section):
    """One way to sample the teacher or a layer-distilled model."""

    sampler: Literal["euler", "heun", "dpmpp_2m"] = "dpmpp_2m"
    """Solver of the probability-flow ODE."""
    steps: Count = 40
    """Steps from the highest noise level to the lowest."""
    guidance_scale: float = Field(1.0, ge=0)
    """Weight w of classifier-free guidance; 1 means no guidance, 0 ignores the prompt."""
    guidance_interval: GuidanceInterval | None = None
    """Noise levels between which guidance acts, such as [0.3, 5], the upper one included; empty means all."""
    guidance_rescale: Fraction = 0.0
    """How much of the variance that guidance adds is taken back: phi of Lin et al. 2023, from 0 (none) to 1 (all)."""

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        check_restraints(self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        return self

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without these two as before there were any, so that ids stand."""
        content: dict[str, Any] = serialize(self)
        restraints = ("guidance_interval", "guidance_rescale")
        return {name: value for name, value in content.items() if value or name not in restraints}

    @property
    def nfe(self) -> int:
        """Network evaluations per sample if guidance, which needs two per denoised estimate, acts at all levels."""
        denoiser_calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return denoiser_calls * (1 if self.guidance_scale in (0, 1) else 2)

    @property
    def guidance_label(self) -> str:
        """What tables add to its name: " w=2", " w=2 at 0.3-5 rescale 0.7", or nothing without guidance."""
        if self.guidance_scale == 1:
            return ""
        interval = " at {:g}-{:g}".format(*self.guidance_interval) if self.guidance_interval else ""
        rescale = f" rescale {self.guidance_rescale:g}" if self.guidance_rescale else ""
        return f" w={self.guidance_scale:g}{interval}{rescale}"

    def count_evaluations(self, sigmas: Sequence[float]) -> int:
        """Network evaluations per sample, given the noise levels: [steps + 1] down to 0."""
        # Heun evaluates at the inner levels twice (EDM, algorithm 1)
        calls = [*sigmas[:-1], *(sigmas[1:-1] if self.sampler == "heun" else ())]
        return sum(map(self.count_passes, calls))

    def count_passes(self, sigma: float) -> int:
        """Network evaluations per denoised estimate at a noise level: two where guidance acts."""
        low, high = self.guidance_interval or (0.0, math.inf)
        return 2 if self.guidance_scale not in (0, 1) and low < sigma <= high else 1


class ClipConfig(Section):
    """How clips are made and where they go, whether from a prompt or from audio."""

    steps: int = Field(4, ge=1, le=1000)
    """Steps of the sampler; a few-step generator needs 1 to 8, a teacher about 40."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the noise: another seed gives another clip for the same prompt, the same seed the same bits."""
    key: str | None = None
    """Key in any spelling, such as Dm, 'C# minor' or 'B♭ major'; empty uses the key in the prompt, if any."""
    tempo_bpm: float | None = Field(None, ge=MIN_TEMPO_BPM, le=MAX_TEMPO_BPM)
    """Tempo in beats per minute; empty uses the tempo in the prompt, such as 120.5 bpm, if any."""
    schedule: ScheduleConfig | None = None
    """Noise levels; empty uses those that the model stores for this number of steps, else sigma 80 to 0.002, rho 7."""
    guidance_scale: float = Field(1.0, ge=0, le=100)
    """Weight of classifier-free guidance, for teachers and layer-distilled models; 1 means no guidance, 0 ignores the
    prompt."""
    guidance_interval: GuidanceInterval | None = None
    """Noise levels between which guidance acts, such as [0.3, 80], the upper one included; empty means all. At others a
    step takes one evaluation instead of two."""
    guidance_rescale: Fraction = 0.0
    """How much of the loudness that guidance adds is taken back, from 0 (none) to 1 (all)."""
    negative_prompt: str = ""
    """Text that guidance moves away from; needs a guidance_scale above 1. Empty uses none."""
    autocast: Literal["none", "bf16"] = "none"
    """Precision inside the network: bf16 halves its memory; for GPUs, no faster on a CPU; clips differ slightly."""
    compile: bool = False
    """Compile the network (torch.compile): faster clips, equal up to rounding, after up to a minute for each length and
    number of blocks, and seconds from the next command on. For many clips; needs a C++ compiler."""
    output: str = ".presto/out"
    """Folder for the clips; file names contain prompt, steps and seed, and no clip overwrites another."""

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        check_restraints(self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        return self

    @property
    def computing(self) -> str:
        """How the network computes, if not plainly in fp32: part of what decides a clip's bits."""
        return describe_computing(autocast=self.autocast, compiled=self.compile)

    @field_validator("output")
    @classmethod
    def _check_folder(cls, value: str) -> str:
        if "://" in value or not value.strip():
            raise ValueError(f"output={value!r} must be a folder of this machine; write one such as .presto/out")
        return value


class GenerateConfig(ClipConfig):
    """What to play, how, and where the clips go."""

    prompts: tuple[str, ...] = ()
    """Prompts, one clip each; the command takes them as arguments or with --prompt."""
    prompts_file: str = ""
    """CSV or JSON Lines file with one clip per row: prompt and, if they differ, seed, steps, seconds, tempo_bpm, key.
    """
    seconds: float | None = Field(None, gt=0, le=3600)
    """Exact length of a clip in seconds; empty uses the length on which the model was trained."""
    loop: bool = False
    """Make loops: the end of a clip flows into its start (--loop)."""
    sections: tuple[str, ...] = ()
    """Prompts of one longer piece, each with its start in seconds, such as '0:piano' and '12:piano and strings'
    (--section)."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.prompts_file and (self.loop or self.sections):
            raise ValueError("prompts_file makes a clip per row: leave out loop and sections, or prompts_file")
        if self.sections:
            if self.prompts or self.loop:
                raise ValueError("sections are prompts of one piece: leave out prompts and loop")
            if self.seconds is None:
                raise ValueError("sections need the length of the piece: set seconds")
            for section in self.sections:
                read_section(section)
        return self


class EditConfig(ClipConfig):
    """Which audio to edit, and how."""

    file: str = ""
    """Audio file to edit, on this machine or at s3://bucket/name."""
    prompt: str = ""
    """What the audio becomes, or how it continues."""
    regions: tuple[str, ...] = ()
    """Parts to regenerate, as FROM:TO in seconds, such as 2.0:4.5 (--region); all else stays bit for bit. Empty: the
    whole file."""
    strength: float | None = Field(None, ge=0, le=1)
    """How much changes, from 0 (nothing) to 1 (everything); empty means 0.5 for the whole file and 1 for regions."""
    extend: float | None = Field(None, ge=0.05, le=3600)
    """Seconds of music to add, instead of changing what is there (--extend); empty adds none."""
    at: Literal["end", "start"] = "end"
    """Where `extend` adds music: at the end or before the start."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.extend is not None and (self.regions or self.strength is not None):
            raise ValueError("extend adds music and changes none: leave out regions and strength, or extend")
        if self.extend is None and self.at != "end":
            raise ValueError(f"at={self.at} is of extend: set extend too")
        for region in self.regions:
            read_region(region)
        return self


def describe_computing(*, autocast: str, compiled: bool) -> str:
    """Return how a network computes: bf16, compiled, both, or nothing for neither."""
    return ", ".join(["bf16"] * (autocast == "bf16") + ["compiled"] * compiled)


def read_region(text: str) -> tuple[float, float]:
    """Parse FROM:TO in seconds; raises ValueError if it has another form, or ends before it starts."""
    start, colon, stop = text.partition(":")
    try:
        region = (float(start), float(stop))
    except ValueError:
        raise ValueError(f"region {text!r} is not FROM:TO in seconds, such as 2.0:4.5") from None
    if not (colon and math.isfinite(region[0]) and math.isfinite(region[1]) and 0 <= region[0] < region[1]):
        raise ValueError(f"region {text!r} must start at 0 or later and end after that, such as 2.0:4.5")
    return region


def read_section(text: str) -> tuple[float, str]:
    """Parse SECONDS:PROMPT; raises ValueError if it has another form."""
    start, colon, prompt = text.partition(":")
    try:
        seconds = float(start)
    except ValueError:
        seconds = math.nan
    if not (colon and math.isfinite(seconds) and seconds >= 0 and prompt.strip()):
        raise ValueError(f"section {text!r} is not SECONDS:PROMPT, such as '12:piano and strings'")
    return seconds, prompt.strip()
