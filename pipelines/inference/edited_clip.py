"""The result of an edit: which parts of it are the given audio's, and its seams, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipelines.console import console
from pipelines.inference.clip import EditedClip
from pipelines.inference.clip_audio import Audio
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, warn_of_cut_text
from pipelines.inference.sampling_request import SamplingRequest, make_clip
from pipelines.inference.sound import FittedSound
from presto_core.audio.seam import Seam, measure_seam
from presto_core.audio.splice import SEAM_SECONDS


def make_edited(
    model: Model,
    fitted: FittedSound,
    audio: Audio,
    regions: list[tuple[int, int]],
    prompt: str,
    words: PromptWords,
    request: SamplingRequest,
    *,
    strength: float,
    gain_db: float,
    form: Mapping[str, object],
) -> EditedClip:
    """Return the clip with its seams measured, and print what the given audio was converted to, if it was."""
    if fitted.converted:
        console.print(f"edit: the audio was converted for the model ({fitted.converted}); what is kept is converted")
    rate_hz, samples = model.codec.sample_rate_hz, audio.shape[1]
    clip = make_clip(
        model, prompt, words, audio, request,
        gain_db=gain_db, cut_text=warn_of_cut_text(model, prompt), form={"source": fitted.digest, **form},
    )  # fmt: skip
    ends = [0, *(end for region in regions for end in region), samples]
    kept = [(ends[i], ends[i + 1]) for i in range(0, len(ends), 2) if ends[i] < ends[i + 1]]
    fields = {name: getattr(clip, name) for name in clip.__dataclass_fields__}
    return EditedClip(
        **fields,
        kept=tuple((a / rate_hz, b / rate_hz) for a, b in kept),
        seams=_measure_seams(audio, regions, rate_hz),
        strength=strength,
        converted=fitted.converted,
    )


def _measure_seams(audio: Audio, regions: list[tuple[int, int]], rate_hz: int) -> tuple[Seam, ...]:
    """Measure where kept audio goes over into a region, and, backwards in time, where a region goes over into it."""
    samples, fade, seams = audio.shape[1], round(SEAM_SECONDS * rate_hz), []
    for start, stop in regions:
        if start:
            seams.append(measure_seam(audio, start, rate_hz=rate_hz, crossfade=fade))
        if stop < samples:
            backwards = measure_seam(audio[:, ::-1], samples - stop, rate_hz=rate_hz, crossfade=fade)
            seams.append(replace(backwards, seconds=stop / rate_hz))
    return tuple(seams)
