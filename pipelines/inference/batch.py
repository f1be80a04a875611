"""Several clips in one network pass per step, each with its own prompt, seed, tempo and key, and each as if made alone.

Noise is drawn per clip from its own seed, and sound is decoded per clip on a CPU. What differs from a clip made alone
is the order of sums in the network's matrix products: latents, of unit variance, differ by less than
`LATENT_TOLERANCE` on a CPU. The decoder's choice of phase can turn on such a difference: the sound differs by less than
`SOUND_TOLERANCE_DB`. A batch of one has the bits of the clip alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.inference.clip_audio import Audio, finish_audio
from pipelines.inference.clip_frames import check_seconds, count_frames
from pipelines.inference.generator import GeneratedClip, Generator
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, check_prompts, check_words, make_conditions, parse_prompt
from pipelines.inference.sampling_request import SamplingRequest, make_clip, sample
from presto_core.config.sampling import ScheduleConfig
from presto_core.device import explain_memory
from presto_core.diffusion.conditioning import Conditioning
from presto_core.errors import UserError
from presto_core.training.step_rng import make_step_rng

LATENT_TOLERANCE = 1e-4
SOUND_TOLERANCE_DB = -25.0  # power of the difference from the clip made alone, relative to the clip's


class AbandonedError(Exception):
    """Nobody waits for any clip of the batch any more, so it was stopped between two steps."""


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make; the attributes are the arguments of `Generator.generate`."""

    prompt: str
    steps: int = 4
    seed: int = 0
    seconds: float | None = None
    tempo_bpm: float | None = None
    key: str | None = None
    schedule: ScheduleConfig | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""

    @property
    def sampling(self) -> SamplingRequest:
        return SamplingRequest(
            steps=self.steps,
            seed=self.seed,
            schedule=self.schedule,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
            guidance_rescale=self.guidance_rescale,
            negative_prompt=self.negative_prompt,
        )

    def check(self, model: Model) -> PromptWords:
        """Return tempo and key of the clip; raises UserError as `Generator.generate` does."""
        check_prompts(self.prompt)
        check_seconds(self.seconds)
        self.sampling.check(model)
        count_frames(model, self.seconds)
        check_words(model, tempo_bpm=self.tempo_bpm, key=self.key)
        return parse_prompt(self.prompt, tempo_bpm=self.tempo_bpm, key=self.key)


def group_requests(model: Model, requests: Sequence[ClipRequest]) -> list[list[int]]:
    """Return positions of requests that share one pass, in order of arrival: equal in all but prompt, seed, tempo, key.

    Raises:
        UserError: a request is longer than the model can make.
    """
    groups: dict[tuple[int, SamplingRequest], list[int]] = {}
    for position, request in enumerate(requests):
        # models that always make clips of one length have the wanted length as a condition, a number per row
        shared = (count_frames(model, request.seconds), replace(request.sampling, seed=0))
        groups.setdefault(shared, []).append(position)
    return list(groups.values())


def generate_batch(
    generator: Generator,
    requests: Sequence[ClipRequest],
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    decode_threads: int = 1,
) -> list[GeneratedClip]:
    """Make one clip per request in one network pass per step; all share a group of `group_requests`.

    Args:
        is_wanted: asked before every step; False stops the batch.
        decode_threads: clips decoded at the same time on a CPU.

    Raises:
        UserError: a request is out of range, differs from the others in length or steps, or the model gives NaN.
        AbandonedError: `is_wanted` returned False.
    """
    model = generator.model
    words = [request.check(model) for request in requests]
    if len(group_requests(model, requests)) != 1:
        raise UserError("the requests of one batch differ in length, steps or noise levels; group them first")
    with explain_memory(model.device, setting="clips of one batch", value=len(requests), least=1.0):
        x0 = sample_latents(model, requests, words, is_wanted=is_wanted)
        sounds = _decode_each(model, x0, decode_threads)
    return [
        _finish(model, request, words_of_clip, sound) for request, words_of_clip, sound in zip(requests, words, sounds)
    ]


def sample_latents(
    model: Model,
    requests: Sequence[ClipRequest],
    words: Sequence[PromptWords],
    *,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Tensor:
    """Return latents [B, C, T], each row from the noise of its own seed."""
    frames = count_frames(model, requests[0].seconds)
    rngs = [make_step_rng(request.seed, total_step=0, device=model.device) for request in requests]
    noise = torch.cat([model.draw_noise(1, generator=rng, frames=frames) for rng in rngs])
    cond = _make_conditions(model, requests, words)

    def check_wanted() -> None:
        if not is_wanted():
            raise AbandonedError

    request = replace(requests[0].sampling, before_step=check_wanted)
    return sample(model, noise, cond, request=request, rng=rngs)


def _make_conditions(model: Model, requests: Sequence[ClipRequest], words: Sequence[PromptWords]) -> Conditioning:
    """Encode all prompts at once; a length that is a condition is that of each clip."""
    cond = make_conditions(model, [request.prompt for request in requests], list(words))
    if cond.timing is None:
        return cond
    timing = cond.timing.clone()
    for row, request in enumerate(requests):
        timing[row, 1] = request.seconds or timing[row, 1]
    return replace(cond, timing=timing)


def _decode_each(model: Model, x0: Tensor, threads: int) -> list[Audio]:
    """Decode [B, C, T] to sounds [channels, samples]: a GPU all at once, a CPU clip by clip, as its cache wants."""
    if model.device.type != "cpu":
        return list(model.decode(x0).cpu().numpy())
    rows = [x0[row : row + 1] for row in range(len(x0))]
    model.codec  # noqa: B018  loaded once, before threads ask for it
    if threads == 1 or len(rows) == 1:
        return [model.decode(row)[0].numpy() for row in rows]
    with ThreadPoolExecutor(min(threads, len(rows))) as pool:
        return list(pool.map(lambda row: model.decode(row)[0].numpy(), rows))


def _finish(model: Model, request: ClipRequest, words: PromptWords, sound: Audio) -> GeneratedClip:
    audio, gain_db = finish_audio(sound, model.codec.sample_rate_hz, seconds=request.seconds)
    cut_text = model.text_encoder.find_cut_text(request.prompt)
    return make_clip(model, request.prompt, words, audio, request.sampling, gain_db=gain_db, cut_text=cut_text)
