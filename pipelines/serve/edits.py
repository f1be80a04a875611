"""Edits of an uploaded sound, as requests name them, in terms of the generator's own methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.serve.clips import EditJob
from pipelines.serve.refusal import refuse
from pipelines.serve.requests import EditRequest


@dataclass(frozen=True)
class UploadedSound:
    """[channels, samples] of an upload, at its own rate."""

    audio: npt.NDArray[np.float32]
    sample_rate_hz: int

    @staticmethod
    def from_job(job: EditJob) -> UploadedSound:
        return UploadedSound(np.frombuffer(job.audio, np.float32).reshape(job.channels, -1), job.sample_rate_hz)


def edit_sound(generator: Any, job: EditJob, request: EditRequest, *, steps: int) -> tuple[Any, dict[str, Any]]:
    """Return the edited clip, and what of the sound was kept in it.

    Raises:
        UserError: the sound or a setting does not fit the model.
    """
    if not hasattr(generator, "edit"):
        raise refuse(501, "this version edits no sounds", "use POST /v1/generate")
    sound = UploadedSound.from_job(job)
    common: dict[str, Any] = {
        "steps": steps,
        "seed": request.seed,
        "tempo_bpm": request.tempo_bpm,
        "key": request.key or None,
        "schedule": request.schedule,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
    }
    if request.operation == "extend":
        clip = generator.extend(sound, request.prompt, seconds=request.seconds, at=request.at, **common)
    else:
        clip = generator.edit(sound, request.prompt, strength=request.strength, regions=request.regions, **common)
    return clip, {"kept": [list(span) for span in clip.kept]}
