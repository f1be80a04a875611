"""How latents are sampled for one request: steps, seed, noise levels and guidance, the same for clips and for edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from pipelines.inference.clip import GeneratedClip
from pipelines.inference.clip_audio import Audio
from pipelines.inference.model import Described, Model, sample_generator, sample_teacher
from pipelines.inference.prompts import PromptWords, make_conditions, parse_prompt
from presto_core.config.sampling import MAX_SEED, BaseSampler, ScheduleConfig, check_levels, check_restraints
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, Denoiser, LevelDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.errors import UserError
from presto_core.samplers.inpainting import make_inpainting_denoiser, shift_noise
from presto_core.samplers.schedule import list_ode_levels, start_schedule_at
from presto_core.samplers.windows import Windows, make_windowed_denoiser


class SamplingArguments(TypedDict, total=False):
    """Arguments that all methods of a generator take, with the meaning and defaults of `Generator.generate`."""

    steps: int
    seed: int
    tempo_bpm: float | None
    key: str | None
    schedule: ScheduleConfig | None
    guidance_scale: float
    guidance_interval: tuple[float, float] | None
    guidance_rescale: float
    negative_prompt: str
    before_step: Callable[[], None] | None


@dataclass(frozen=True)
class SamplingRequest:
    """Arguments of `Generator.generate` that decide how, not what."""

    steps: int = 4
    seed: int = 0
    schedule: ScheduleConfig | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    before_step: Callable[[], None] | None = field(default=None, compare=False)
    """Called before every evaluation of the model, of every window; ends sampling by what it raises."""

    def __post_init__(self) -> None:
        if self.guidance_interval is None:
            return
        try:
            low, high = map(float, self.guidance_interval)
        except (TypeError, ValueError):
            raise UserError(
                f"guidance_interval={self.guidance_interval!r} must be two noise levels, such as (0.3, 80)"
            ) from None
        object.__setattr__(self, "guidance_interval", (low, high))  # equal for a list or whole numbers, as in names

    def check(self, model: Described) -> None:
        """Refuse numbers out of range, and guidance of a model that is sampled without; raises UserError."""
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed={self.seed} must be from 0 to {MAX_SEED}")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= 100):
            raise UserError(f"guidance_scale={self.guidance_scale} must be from 0 to 100; 1 is none")
        given = {
            "guidance_scale": self.guidance_scale if self.guidance_scale != 1 else "",
            "guidance_interval": list(self.guidance_interval or ()),
            "guidance_rescale": self.guidance_rescale,
            "negative_prompt": self.negative_prompt[:40],
        }
        if model.artifact.kind == "generator" and (
            named := [f"{name}={value}" for name, value in given.items() if value]
        ):
            raise UserError(
                f"{' and '.join(named)}: guidance is for teachers and layer-distilled models; {model.artifact.id} is a "
                "few-step generator, which is sampled without: leave out all settings of guidance"
            )
        if self.negative_prompt and self.guidance_scale == 1:
            raise UserError("negative_prompt has no effect with guidance_scale=1; set it to 2 or so")
        try:
            check_restraints(self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        except ValueError as error:
            raise UserError(str(error)) from None

    def check_levels(self, model: Described) -> None:
        """Refuse guidance that acts at none of the noise levels of a clip; raises UserError."""
        if self.guidance_interval is not None:
            schedule = self.schedule or model.card.default_schedule
            _check_levels(self.guidance_interval, list_ode_levels(self.steps, schedule).tolist())


@dataclass(frozen=True)
class Given:
    """Latents to start from.

    Attributes:
        latents: [1, C, T], normalised.
        made: [T], 1 for frames to make anew; the others stay. None makes all.
        strength: noise level at which the frames to make begin, above 0; at 1 they begin from noise alone.
    """

    latents: Tensor
    made: Tensor | None
    strength: float


def sample(
    model: Model,
    noise: Tensor,
    cond: Conditioning,
    *,
    request: SamplingRequest,
    rng: torch.Generator | Sequence[torch.Generator],
    windows: Windows | None = None,
    given: Given | None = None,
) -> Tensor:
    """Sample latents [B, C, T] of noise [B, C, T], from nothing or from given latents, in windows or in one go.

    Args:
        cond: one row per clip, or one per window; windows and given latents take one clip.
        rng: of the noise added between the steps of a few-step generator; or one per clip.
    """
    schedule, steps = _pick_schedule(model, request), request.steps
    if given is not None:
        schedule, steps = start_schedule_at(given.strength, schedule, steps)
        made = torch.ones(noise.shape[-1]) if given.made is None else given.made
        # frames that are made from noise alone begin with nothing; those that stay, with themselves
        kept = (1 - made).to(noise) if given.strength == 1 else torch.ones_like(noise)
        noise = shift_noise(noise, start=kept * given.latents, sigma=schedule.highest)

    def wrap(denoise: Denoiser) -> Denoiser:
        if request.before_step is not None:
            denoise = _call_before(denoise, request.before_step)
        if windows is not None:
            denoise = make_windowed_denoiser(denoise, windows)
        if given is not None and given.made is not None:
            denoise = make_inpainting_denoiser(denoise, given.latents, given.made)
        return denoise

    guided = _make_denoiser(model, request)
    denoise = guided.wrap(wrap) if isinstance(guided, LevelDenoiser) else wrap(guided)
    if model.artifact.kind == "generator":
        return sample_generator(model, noise, cond, steps=steps, schedule=schedule, generator=rng, denoise=denoise)
    sampler = BaseSampler(steps=steps)
    if isinstance(denoise, LevelDenoiser):
        _check_levels((denoise.low, denoise.high), list_ode_levels(steps, schedule).tolist())
    return sample_teacher(model, noise, cond, sampler=sampler, schedule=schedule, denoise=denoise)


def _pick_schedule(model: Model, request: SamplingRequest) -> ScheduleConfig:
    if request.schedule is not None:
        return request.schedule
    card = model.card
    return card.schedule_at(request.steps) if model.artifact.kind == "generator" else card.default_schedule


def _make_denoiser(model: Model, request: SamplingRequest) -> Denoiser:
    negative = None
    if request.negative_prompt:
        words = parse_prompt(request.negative_prompt)
        negative = make_conditions(model, [request.negative_prompt], [words])
    return make_guided_denoiser(
        model.denoise,
        request.guidance_scale,
        negative=negative,
        interval=request.guidance_interval,
        rescale=request.guidance_rescale,
    )


def _check_levels(interval: tuple[float, float], sigmas: Sequence[float]) -> None:
    try:
        check_levels(interval, sigmas)
    except ValueError as error:
        raise UserError(str(error)) from None


def _call_before(denoise: Denoiser, before_step: Callable[[], None]) -> Denoiser:
    def denoise_after_call(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        before_step()
        return denoise(x, sigma, cond, budget)

    return denoise_after_call


def make_clip(
    model: Model,
    prompt: str,
    words: PromptWords,
    audio: Audio,
    request: SamplingRequest,
    *,
    gain_db: float,
    cut_text: str,
    form: Mapping[str, object] | None = None,
) -> GeneratedClip:
    """Return a clip with what it was made with."""
    return GeneratedClip(
        prompt,
        audio,
        model.codec.sample_rate_hz,
        model_id=model.artifact.id,
        steps=request.steps,
        seed=request.seed,
        tempo_bpm=words.tempo_bpm,
        key=words.key_name,
        schedule=request.schedule,
        gain_db=gain_db,
        cut_text=cut_text,
        device=model.device.type,
        guidance_scale=request.guidance_scale,
        guidance_interval=request.guidance_interval,
        guidance_rescale=request.guidance_rescale,
        negative_prompt=request.negative_prompt,
        computing=model.computing,
        form=form or {},
    )
