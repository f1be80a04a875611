"""Edits of an uploaded sound, loops and longer pieces, as requests name them, by the generator's own methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.inference.clip import EditedClip, GeneratedClip
from pipelines.inference.generator import Generator
from pipelines.inference.sound import Sound
from pipelines.serve.clips import EditJob
from pipelines.serve.requests import EditRequest, GenerateRequest, Sampling


def edit_sound(
    generator: Generator, job: EditJob, request: EditRequest, *, steps: int
) -> tuple[EditedClip, dict[str, Any]]:
    """Return the edited clip, and what of the sound was kept in it.

    Raises:
        UserError: the sound or a setting does not fit the model.
    """
    sound = Sound(np.frombuffer(job.audio, np.float32).reshape(job.channels, -1), job.sample_rate_hz)
    common = _common_arguments(request, steps)
    if request.operation == "extend":
        assert request.seconds is not None  # the request was checked
        clip = generator.extend(sound, request.prompt, seconds=request.seconds, at=request.at, **common)
    else:
        clip = generator.edit(sound, request.prompt, strength=request.strength, regions=request.regions, **common)
    notes: dict[str, Any] = {"kept": [list(span) for span in clip.kept]}
    notes |= {"seam_db": round(clip.seam_db, 2)} if clip.seam_db is not None else {}
    notes |= {"converted": clip.converted} if clip.converted else {}
    return clip, notes


def make_piece(generator: Generator, request: GenerateRequest, *, steps: int) -> GeneratedClip:
    """Return a loop, or a piece whose prompt changes; raises UserError if a setting does not fit the model."""
    common = _common_arguments(request, steps)
    if request.loop:
        return generator.make_loop(request.prompt, seconds=request.seconds, **common)
    assert request.seconds is not None  # the request was checked
    sections = [(0.0, request.prompt), *request.sections]
    return generator.compose(sections, seconds=request.seconds, **common)


def _common_arguments(request: Sampling, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "seed": request.seed,
        "tempo_bpm": request.tempo_bpm,
        "key": request.key or None,
        "schedule": request.schedule,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
    }
