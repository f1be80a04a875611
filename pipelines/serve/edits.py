"""Edits of an uploaded sound, loops and longer pieces, as requests name them, by the generator's own methods.

`before_step` of each ends the work by what it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.inference.clip import EditedClip, GeneratedClip
from pipelines.inference.generator import Generator
from pipelines.inference.sampling_request import SamplingArguments
from pipelines.inference.sound import Sound
from pipelines.inference.streamed_piece import StreamedPiece
from pipelines.serve.clips import EditJob
from pipelines.serve.requests import EditRequest, GenerateRequest, Sampling


def edit_sound(
    generator: Generator, job: EditJob, request: EditRequest, *, steps: int, before_step: Callable[[], None]
) -> tuple[EditedClip, dict[str, Any]]:
    """Return the edited clip, and what of the sound was kept in it.

    Raises:
        UserError: the sound or a setting does not fit the model.
    """
    sound = Sound(np.frombuffer(job.audio, np.float32).reshape(job.channels, -1), job.sample_rate_hz)
    common = _common_arguments(request, steps, before_step)
    if request.operation == "extend":
        assert request.seconds is not None  # the request was checked
        clip = generator.extend(sound, request.prompt, seconds=request.seconds, at=request.at, **common)
    else:
        clip = generator.edit(sound, request.prompt, strength=request.strength, regions=request.regions, **common)
    notes: dict[str, Any] = {"kept": [list(span) for span in clip.kept]}
    notes |= {"seam_db": round(clip.seam_db, 2)} if clip.seam_db is not None else {}
    notes |= {"converted": clip.converted} if clip.converted else {}
    return clip, notes


def make_piece(
    generator: Generator, request: GenerateRequest, *, steps: int, before_step: Callable[[], None]
) -> GeneratedClip:
    """Return a loop, or a piece whose prompt changes; raises UserError if a setting does not fit the model."""
    if request.loop:
        common = _common_arguments(request, steps, before_step)
        return generator.make_loop(request.prompt, seconds=request.seconds, **common)
    return open_piece(generator, request, steps=steps, before_step=before_step).read_all()


def open_piece(
    generator: Generator, request: GenerateRequest, *, steps: int, before_step: Callable[[], None]
) -> StreamedPiece:
    """Return a piece to be decoded as it is read; raises UserError if a setting does not fit the model."""
    assert request.seconds is not None  # the request was checked
    sections = [(0.0, request.prompt), *request.sections]
    return generator.stream(sections, seconds=request.seconds, **_common_arguments(request, steps, before_step))


def _common_arguments(request: Sampling, steps: int, before_step: Callable[[], None]) -> SamplingArguments:
    return {
        "steps": steps,
        "seed": request.seed,
        "tempo_bpm": request.tempo_bpm,
        "key": request.key or None,
        "schedule": request.schedule,
        "guidance_scale": request.guidance_scale,
        "guidance_interval": request.guidance_interval,
        "guidance_rescale": request.guidance_rescale,
        "negative_prompt": request.negative_prompt,
        "before_step": before_step,
    }
