"""Edits of an uploaded sound, as requests name them, in terms of the generator's own methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.inference.clip import EditedClip
from pipelines.inference.generator import Generator
from pipelines.inference.sound import Sound
from pipelines.serve.clips import EditJob
from pipelines.serve.requests import EditRequest


def edit_sound(
    generator: Generator, job: EditJob, request: EditRequest, *, steps: int
) -> tuple[EditedClip, dict[str, Any]]:
    """Return the edited clip, and what of the sound was kept in it.

    Raises:
        UserError: the sound or a setting does not fit the model.
    """
    sound = Sound(np.frombuffer(job.audio, np.float32).reshape(job.channels, -1), job.sample_rate_hz)
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
        assert request.seconds is not None  # the request was checked
        clip = generator.extend(sound, request.prompt, seconds=request.seconds, at=request.at, **common)
    else:
        clip = generator.edit(sound, request.prompt, strength=request.strength, regions=request.regions, **common)
    notes: dict[str, Any] = {"kept": [list(span) for span in clip.kept]}
    notes |= {"seam_db": round(clip.seam_db, 2)} if clip.seam_db is not None else {}
    notes |= {"converted": clip.converted} if clip.converted else {}
    return clip, notes
