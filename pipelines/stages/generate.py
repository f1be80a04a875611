"""Stage: prompts -> music: a WAV and a spectrogram each, from any model of the registry or of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile

from pipelines.console import console
from pipelines.evaluate.spectrograms import check_spectrograms
from pipelines.inference.clip import GeneratedClip
from pipelines.inference.clip_batch import make_clips
from pipelines.inference.generator import Generator
from pipelines.inference.prompt_file import read_prompt_file
from pipelines.inference.prompts import check_prompts, parse_prompt
from pipelines.stages.clip_output import ClipFiles as ClipFiles
from pipelines.stages.clip_output import find_model as find_model
from pipelines.stages.clip_output import list_sampling_arguments, make_files, make_folder, open_stage_generator
from presto_core.config.sampling import GenerateConfig, read_section
from presto_core.config.schema import GenerateStage
from presto_core.errors import UserError


def run(config: GenerateStage) -> list[ClipFiles]:
    """Generate one clip per prompt, or one piece of sections; a prompt given twice is one clip.

    Raises:
        UserError: no prompt, unknown model or key, a tempo out of range, output folder that cannot be written.
    """
    settings = config.generate
    if settings.prompts_file:
        return run_batch(config)
    prompts = _list_prompts(settings)
    generator = open_stage_generator(config, steps=settings.steps)
    folder = make_folder(settings.output, stage="generate")
    can_plot = check_spectrograms("generate", len(prompts))
    return [
        make_files(lambda: _generate(settings, generator, prompt), folder, stage="generate", can_plot=can_plot)  # noqa: B023
        for prompt in prompts
    ]


def _list_prompts(settings: GenerateConfig) -> list[str]:
    """The prompts of the clips, each once; of a piece of sections, the first."""
    if settings.sections:
        return [read_section(settings.sections[0])[1]]
    if not settings.prompts:
        raise UserError('nothing to generate: give a prompt, as in presto generate "solo piano, slow, A minor"')
    prompts = list(dict.fromkeys(check_prompts(settings.prompts)))
    if repeated := len(settings.prompts) - len(prompts):
        console.print(f"generate: {repeated} repeated prompts left out: a prompt gives one clip per generate.seed")
    for prompt in prompts:
        parse_prompt(prompt, tempo_bpm=settings.tempo_bpm, key=settings.key)
    return prompts


def _generate(settings: GenerateConfig, generator: Generator, prompt: str) -> GeneratedClip:
    how: dict[str, Any] = list_sampling_arguments(settings)
    if settings.sections:
        assert settings.seconds is not None  # the configuration refuses sections without a length
        return generator.compose([read_section(text) for text in settings.sections], seconds=settings.seconds, **how)
    if settings.loop:
        return generator.make_loop(prompt, seconds=settings.seconds, **how)
    return generator.generate([prompt], seconds=settings.seconds, **how)[0]


def run_batch(config: GenerateStage) -> list[ClipFiles]:
    """Generate a clip per row of `generate.prompts_file`; raises what `read_prompt_file` and `make_clips` do."""
    settings = config.generate
    if settings.prompts:
        raise UserError(
            f"generate.prompts_file={settings.prompts_file} and the prompt {settings.prompts[0]!r} are both given; "
            "add the prompt to the file, or leave one out"
        )
    requests = read_prompt_file(Path(settings.prompts_file), settings)
    folder = make_folder(settings.output, stage="generate")
    artifact = find_model(config)
    rows = make_clips(config, requests, artifact, folder)
    files = [(row, folder / row["file"]) for row in rows]
    return [ClipFiles(row["prompt"], wav, None, soundfile.info(wav).duration, float(row["ms"])) for row, wav in files]
