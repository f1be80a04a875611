"""Loops, whose end flows into their start, and pieces longer than a model's clips: both by overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.inference.clip import GeneratedClip
from pipelines.inference.clip_audio import Audio, check_finite, count_samples
from pipelines.inference.clip_frames import check_seconds, count_frames, count_overlap
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, check_prompts, make_conditions, parse_prompt, warn_of_cut_text
from pipelines.inference.sampling_request import SamplingRequest, make_clip, sample
from pipelines.inference.sound import LONGEST_SECONDS
from pipelines.inference.streamed_piece import StreamedPiece
from presto_core.audio.loudness import limit_peak
from presto_core.audio.splice import SEAM_SECONDS, close_loop
from presto_core.device import explain_memory
from presto_core.errors import UserError
from presto_core.samplers.windows import Windows, cover_circle, cover_line
from presto_core.training.step_rng import make_step_rng

SHORTEST_LOOP_SECONDS = 0.25
DECODER_FRAMES = 12  # that a decoder's end is noticed in: Griffin-Lim of the embedded codec reaches ten


def make_loop(
    model: Model, prompt: str, words: PromptWords, request: SamplingRequest, *, seconds: float | None
) -> GeneratedClip:
    """See `Editing.make_loop`."""
    codec = model.codec
    check_seconds(seconds)
    if seconds is not None and not SHORTEST_LOOP_SECONDS <= seconds <= LONGEST_SECONDS:
        raise UserError(f"seconds={seconds:g} of a loop must be from {SHORTEST_LOOP_SECONDS} to {LONGEST_SECONDS:g}")
    samples = model.card.frames * codec.hop if seconds is None else count_samples(seconds, codec.sample_rate_hz)
    frames = max(1, round(samples / codec.hop))
    with explain_memory(model.device, setting="seconds", value=samples / codec.sample_rate_hz, least=1.0):
        rng = make_step_rng(request.seed, total_step=0, device=model.device)
        noise = model.draw_noise(1, generator=rng, frames=frames)
        cond = make_conditions(model, [prompt], [words])
        windows = cover_circle(frames, window=model.card.frames)
        x0 = sample(model, noise, cond, request=request, rng=rng, windows=windows)
        loop = _decode_circle(model, x0)
    check_finite(loop)
    audio, gain_db = limit_peak(_fit_length(loop, samples))
    return make_clip(
        model, prompt, words, audio, request,
        gain_db=gain_db, cut_text=warn_of_cut_text(model, prompt), form={"loop": True},
    )  # fmt: skip


def open_piece(
    model: Model,
    sections: Sequence[tuple[float, str]],
    request: SamplingRequest,
    *,
    seconds: float,
    overlap_seconds: float | None,
    tempo_bpm: float | None,
    key: str | None,
) -> StreamedPiece:
    """See `Editing.stream` and `Editing.compose`."""
    codec, window = model.codec, model.card.frames
    starts, prompts = _check_sections(sections, seconds=seconds)
    words = [parse_prompt(prompt, tempo_bpm=tempo_bpm, key=key) for prompt in prompts]
    cut_texts = [warn_of_cut_text(model, prompt) for prompt in prompts]
    windows = _cover_piece(model, seconds=seconds, overlap_seconds=overlap_seconds)
    chosen = [_find_section(starts, center * codec.hop / codec.sample_rate_hz) for center in windows.centers]
    with explain_memory(model.device, setting="seconds", value=seconds, least=1.0):
        rng = make_step_rng(request.seed, total_step=0, device=model.device)
        noise = model.draw_noise(1, generator=rng, frames=windows.frames)
        cond = make_conditions(model, prompts, words, seconds=seconds if windows.frames <= window else None)
        cond = cond.rows(torch.tensor(chosen, device=model.device))
        x0 = sample(model, noise, cond, request=request, rng=rng, windows=windows)
    silence = np.broadcast_to(np.float32(0), (codec.audio_channels, count_samples(seconds, codec.sample_rate_hz)))
    overlap = windows.index.shape[1] if len(windows) == 1 else int(windows.index[0, -1] - windows.index[1, 0] + 1)
    form = {"sections": [[start, prompt] for start, prompt in zip(starts, prompts)], "overlap_frames": overlap}
    title = " → ".join(dict.fromkeys(prompts))
    about = make_clip(
        model, title, words[0], silence, request,
        gain_db=0.0, cut_text="".join(cut_texts), form={} if len(sections) == len(windows) == 1 else form,
    )  # fmt: skip
    return StreamedPiece(model, about, x0, is_long=len(windows) > 1, before_part=request.before_step)


def _check_sections(sections: Sequence[tuple[float, str]], *, seconds: float) -> tuple[list[float], list[str]]:
    check_seconds(seconds)
    if seconds > LONGEST_SECONDS:
        raise UserError(f"seconds={seconds:g} of a piece must be at most {LONGEST_SECONDS:g}")
    starts, prompts = [float(start) for start, _ in sections], check_prompts([prompt for _, prompt in sections])
    if not starts or starts[0] != 0:
        raise UserError('sections must begin at 0 s, as in [(0, "piano"), (12, "piano and strings")]')
    for start, after in zip(starts, [*starts[1:], seconds]):
        if not (math.isfinite(start) and start < after):
            raise UserError(f"the section at {start:g} s must begin before {after:g} s; put the sections in order")
    return starts, prompts


def _find_section(starts: list[float], seconds: float) -> int:
    return sum(start <= seconds for start in starts) - 1


def _cover_piece(model: Model, *, seconds: float, overlap_seconds: float | None) -> Windows:
    """What fits into one window is made in one go, as `generate` makes it."""
    codec, window = model.codec, model.card.frames
    frames_per_second = codec.sample_rate_hz / codec.hop
    if count_samples(seconds, codec.sample_rate_hz) <= window * codec.hop:
        frames = count_frames(model, seconds)
        return cover_line(frames, window=frames, overlap=1)
    overlap = count_overlap(window) if overlap_seconds is None else round(overlap_seconds * frames_per_second)
    if not 1 <= overlap < window:
        longest = (window - 1) / frames_per_second
        raise UserError(f"overlap_seconds={overlap_seconds:g} must be from 0.05 to {longest:.2f} with this model")
    frames = math.ceil(count_samples(seconds, codec.sample_rate_hz) / codec.hop)
    return cover_line(frames, window=window, overlap=overlap)


def _decode_circle(model: Model, x0: torch.Tensor) -> Audio:
    """Decode latents [1, C, T] as a circle: with what goes before and after, and the end faded to what goes before."""
    codec, frames = model.codec, x0.shape[-1]
    seam = min(round(SEAM_SECONDS * codec.sample_rate_hz), frames * codec.hop // 2)
    margin = codec.margin_frames + DECODER_FRAMES + math.ceil(seam / codec.hop)
    turned = torch.arange(-margin, frames + margin, device=x0.device) % frames
    decoded = model.decode(x0[..., turned])[0].cpu().numpy()
    start = margin * codec.hop
    return close_loop(decoded[:, start : start + frames * codec.hop], decoded[:, start - seam : start])


def _fit_length(loop: Audio, samples: int) -> Audio:
    """Resample a loop by Fourier series, in which it stays a loop, to its exact length: a change of half a frame."""
    if loop.shape[1] == samples:
        return loop
    from scipy.signal import resample

    return np.ascontiguousarray(resample(loop.astype(np.float64), samples, axis=1), dtype=np.float32)
