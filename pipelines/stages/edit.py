"""Stage: audio and a prompt -> audio that is changed, repainted in regions, or goes on: a WAV and a spectrogram."""

from __future__ import annotations

import posixpath

from pipelines.evaluate.spectrograms import check_spectrograms
from pipelines.inference.clip import EditedClip
from pipelines.inference.generator import Generator
from pipelines.inference.prompts import check_prompts, parse_prompt
from pipelines.inference.sound import Sound, read_sound
from pipelines.stages.clip_output import (
    ClipFiles,
    list_sampling_arguments,
    make_files,
    make_folder,
    open_stage_generator,
)
from pipelines.storage.filesystem import open_source
from presto_core.config.sampling import EditConfig, read_region
from presto_core.config.schema import EditStage
from presto_core.errors import UserError


def run(config: EditStage) -> ClipFiles:
    """Edit one audio file.

    Raises:
        UserError: no file or prompt, audio that cannot be used, a region outside of it, unknown model or key, a tempo
            out of range, output folder that cannot be written.
    """
    settings = config.edit
    if not settings.file:
        raise UserError('nothing to edit: give an audio file, as in presto edit song.wav "solo piano" --region 2:4.5')
    check_prompts([settings.prompt])
    parse_prompt(settings.prompt, tempo_bpm=settings.tempo_bpm, key=settings.key)
    sound = read_any_sound(settings.file)
    generator = open_stage_generator(config, steps=settings.steps)
    folder = make_folder(settings.output, stage="edit")
    can_plot = check_spectrograms("edit", 1)
    return make_files(lambda: _edit(settings, generator, sound), folder, stage="edit", can_plot=can_plot)


def read_any_sound(uri: str) -> Sound:
    """Read an audio file of this machine or of a bucket; raises UserError."""
    if "://" not in uri or uri.startswith("file://"):
        return read_sound(uri.removeprefix("file://"))
    parent, name = posixpath.split(uri)
    folder = open_source(parent, setting="edit.file")
    if not name or not folder.exists(name):
        raise UserError(f"edit.file={uri} does not exist; correct it")
    with folder.filesystem.open_input_file(folder.file_path(name)) as stream:
        return read_sound(stream)


def _edit(settings: EditConfig, generator: Generator, sound: Sound) -> EditedClip:
    how = list_sampling_arguments(settings)
    if settings.extend is not None:
        return generator.extend(sound, settings.prompt, seconds=settings.extend, at=settings.at, **how)
    regions = [read_region(text) for text in settings.regions]
    return generator.edit(sound, settings.prompt, strength=settings.strength, regions=regions, **how)
