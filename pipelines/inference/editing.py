"""Make audio anew, wholly or in regions, or longer: what is outside of the regions keeps its bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.console import console
from pipelines.inference.clip import EditedClip
from pipelines.inference.clip_audio import FADE_SECONDS, Audio, check_finite, count_samples, finish_audio
from pipelines.inference.clip_frames import choose_span, count_frames, count_overlap
from pipelines.inference.edited_clip import make_edited
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, make_conditions
from pipelines.inference.sampling_request import Given, SamplingRequest, sample
from pipelines.inference.sound import LONGEST_SECONDS, HasAudio, fit_sound
from pipelines.inference.source_tempo import add_source_tempo
from presto_core.audio.loudness import CEILING_DBFS, limit_peak
from presto_core.audio.splice import insert
from presto_core.device import explain_memory
from presto_core.errors import UserError
from presto_core.samplers.inpainting import mask_frames
from presto_core.samplers.windows import cover_line
from presto_core.training.step_rng import make_step_rng

SHORTEST_REGION_SECONDS = 0.05
DEFAULT_STRENGTH = 0.5
FADE_SHARE = 0.2  # level of the last millisecond of a fade against what is before it: a cosine has 0.06

Region = tuple[int, int]  # first sample, and the one after the last


def edit(
    model: Model,
    sound: HasAudio,
    prompt: str,
    words: PromptWords,
    request: SamplingRequest,
    *,
    strength: float | None,
    regions: Sequence[tuple[float, float]],
) -> EditedClip:
    """See `Editing.edit`."""
    if strength is None:
        strength = 1.0 if regions else DEFAULT_STRENGTH
    if not 0 <= strength <= 1:  # NaN too
        raise UserError(f"strength={strength} must be from 0, which keeps all, to 1, which keeps nothing")
    fitted = fit_sound(sound, model.codec)
    samples = fitted.audio.shape[1]
    spans = check_regions(regions, samples=samples, rate_hz=model.codec.sample_rate_hz)
    form = {"strength": strength, "regions": [list(map(float, region)) for region in regions]}
    if strength == 0:
        audio, gain_db, spans = fitted.audio, 0.0, []
    elif not regions:
        audio, gain_db = _vary(model, fitted.audio, prompt, words, request, strength)
        spans = [(0, samples)]
    else:
        words = add_source_tempo(model, words, fitted.audio, start=spans[0][0], stop=spans[-1][1])
        audio, gain_db = _remake(model, fitted.audio, spans, prompt, words, request, strength)
    return make_edited(
        model, fitted, audio, spans, prompt, words, request, strength=strength, gain_db=gain_db, form={"edit": form}
    )


def extend(
    model: Model,
    sound: HasAudio,
    prompt: str,
    words: PromptWords,
    request: SamplingRequest,
    *,
    seconds: float,
    at: str,
) -> EditedClip:
    """See `Editing.extend`."""
    if at not in ("end", "start"):
        raise UserError(f"at={at!r} is neither end nor start")
    if not (math.isfinite(seconds) and SHORTEST_REGION_SECONDS <= seconds <= LONGEST_SECONDS):
        raise UserError(f"seconds={seconds} to extend by must be from {SHORTEST_REGION_SECONDS} to {LONGEST_SECONDS:g}")
    fitted = fit_sound(sound, model.codec)
    rate_hz, at_end = model.codec.sample_rate_hz, at == "end"
    known, added = fitted.audio.shape[1], count_samples(seconds, rate_hz)
    padded = np.pad(fitted.audio, ((0, 0), (0, added) if at_end else (added, 0)))
    fade = count_fade(fitted.audio if at_end else fitted.audio[:, ::-1], rate_hz)
    region = (known - fade, known + added) if at_end else (0, added + fade)
    words = add_source_tempo(model, words, padded, start=region[0], stop=region[1])
    audio, gain_db = _remake(model, padded, [region], prompt, words, request, 1.0)
    form = {"extend": {"seconds": float(seconds), "at": at}}
    return make_edited(model, fitted, audio, [region], prompt, words, request, strength=1.0, gain_db=gain_db, form=form)


def count_fade(audio: Audio, rate_hz: int) -> int:
    """Return how many samples at the end of audio [A, N] are a fade of a cut, such as generated clips have: 0 or 5 ms.

    Music that goes on after it would have a hole there.
    """
    fade, edge = math.ceil(FADE_SECONDS * rate_hz), round(FADE_SECONDS * rate_hz / 5)
    before, last = (np.sqrt(np.square(part).mean()) for part in (audio[:, -2 * fade : -fade], audio[:, -edge:]))
    return fade if np.abs(audio[:, -1]).max() <= 2**-15 and 0 < last < FADE_SHARE * before else 0


def check_regions(regions: Sequence[tuple[float, float]], *, samples: int, rate_hz: int) -> list[Region]:
    """Return regions in seconds as sorted regions of samples.

    Raises:
        UserError: one is reversed, too short, not within the audio, or overlaps another.
    """
    seconds, found = samples / rate_hz, []
    for region in regions:
        start, stop = map(float, region)
        name = f"region {start:g}:{stop:g}"
        if not (math.isfinite(start) and math.isfinite(stop)) or start < 0 or stop > seconds + 1 / rate_hz:
            raise UserError(f"{name} is not within the audio, which lasts {seconds:.3f} s")
        if stop <= start:
            raise UserError(f"{name} ends before it starts; write FROM:TO in seconds, such as 2.0:4.5")
        if stop - start < SHORTEST_REGION_SECONDS:
            raise UserError(f"{name} is too short; make it at least {SHORTEST_REGION_SECONDS} s")
        found.append((round(start * rate_hz), min(round(stop * rate_hz), samples)))
    found.sort()
    for (_, stop), (start, _) in zip(found, found[1:]):
        if start < stop:
            raise UserError(f"two regions overlap at {start / rate_hz:g} s; join them, or move one")
    return found


def _vary(
    model: Model, audio: Audio, prompt: str, words: PromptWords, request: SamplingRequest, strength: float
) -> tuple[Audio, float]:
    """Make all of the audio anew, from it and noise; return it with the gain in dB."""
    codec, window = model.codec, model.card.frames
    samples = audio.shape[1]
    seconds = samples / codec.sample_rate_hz
    fits = samples <= window * codec.hop
    frames = count_frames(model, seconds) if fits else -(-samples // codec.hop)
    with explain_memory(model.device, setting="seconds", value=seconds, least=1.0):
        rng = make_step_rng(request.seed, total_step=0, device=model.device)
        noise = model.draw_noise(1, generator=rng, frames=frames)
        cond = make_conditions(model, [prompt], [words], seconds=seconds if fits else None)
        padded = np.pad(audio, ((0, 0), (0, frames * codec.hop - samples)))
        given = Given(model.encode(torch.from_numpy(padded)[None]), None, strength)
        windows = None if fits else cover_line(frames, window=window, overlap=count_overlap(window))
        x0 = sample(model, noise, cond, request=request, rng=rng, windows=windows, given=given)
        decoded = model.decode(x0)[0].cpu().numpy()
    return finish_audio(decoded, codec.sample_rate_hz, seconds=seconds)


def _remake(
    model: Model,
    audio: Audio,
    regions: list[Region],
    prompt: str,
    words: PromptWords,
    request: SamplingRequest,
    strength: float,
) -> tuple[Audio, float]:
    """Make regions anew, one after another: each hears those before it; return the audio and the lowest gain in dB."""
    rate_hz = model.codec.sample_rate_hz
    kept_peak = _measure_kept_peak(audio, regions)
    ceiling_dbfs = min(0.0, max(CEILING_DBFS, 20 * math.log10(max(kept_peak, 1e-9))))
    lowest_db = 0.0
    for number, (start, stop) in enumerate(regions):
        seconds = (stop - start) / rate_hz
        with explain_memory(model.device, setting="seconds", value=seconds, least=0.1):
            made = _make_region(model, audio, (start, stop), prompt, words, request, strength, number)
        check_finite(made)
        made, gain_db = limit_peak(made, ceiling_dbfs=ceiling_dbfs)
        lowest_db = min(lowest_db, gain_db)
        audio = insert(audio, made, start=start, rate_hz=rate_hz, fade_ends=math.ceil(FADE_SECONDS * rate_hz))
        # where two loud sounds cross, some samples may lie higher
        crossed, ceiling = audio[:, start:stop], 10 ** (ceiling_dbfs / 20)
        if cut := int((np.abs(crossed) > ceiling).sum()):
            console.print(f"edit: {cut} samples where sounds cross were cut at {ceiling_dbfs:.1f} dBFS")
        audio[:, start:stop] = crossed.clip(-ceiling, ceiling)
    return audio, lowest_db


def _make_region(
    model: Model,
    audio: Audio,
    region: Region,
    prompt: str,
    words: PromptWords,
    request: SamplingRequest,
    strength: float,
    number: int,
) -> Audio:
    """Sample and decode the region within what is around it: [A, stop - start]."""
    codec, window = model.codec, model.card.frames
    span = choose_span(region, samples=audio.shape[1], hop=codec.hop, margin=codec.margin_frames, window=window)
    known = _encode_span(model, audio, start=span.start, frames=span.frames)
    made = mask_frames(span.frames, [span.made, (span.known_stop, span.frames)])
    rng = make_step_rng(request.seed, total_step=number, device=model.device)
    noise = model.draw_noise(1, generator=rng, frames=span.frames)
    windows = None if span.frames == window else cover_line(span.frames, window=window, overlap=count_overlap(window))
    cond = make_conditions(model, [prompt], [words])
    x0 = sample(
        model, noise, cond, request=request, rng=rng, windows=windows, given=Given(known, made.to(noise), strength)
    )
    first = region[0] - span.start * codec.hop
    return model.decode(x0)[0, :, first : first + region[1] - region[0]].cpu().numpy()


def _encode_span(model: Model, audio: Audio, *, start: int, frames: int) -> torch.Tensor:
    """Encode whole frames of the audio with what is around them; frames beyond its end are zero: [1, C, frames]."""
    codec = model.codec
    latents = torch.zeros(1, model.card.channels, frames, device=model.device)
    first = max(0, start - codec.margin_frames)
    stop = min(start + frames + codec.margin_frames, audio.shape[1] // codec.hop)
    if stop > start:
        part = torch.from_numpy(np.ascontiguousarray(audio[None, :, first * codec.hop : stop * codec.hop]))
        encoded = model.encode(part)[..., start - first :][..., :frames]
        latents[..., : encoded.shape[-1]] = encoded
    return latents


def _measure_kept_peak(audio: Audio, regions: list[Region]) -> float:
    kept = np.ones(audio.shape[1], bool)
    for start, stop in regions:
        kept[start:stop] = False
    return float(np.abs(audio[:, kept]).max(initial=0.0))
