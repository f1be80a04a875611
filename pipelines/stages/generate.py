"""Stage: prompts -> music: a WAV and a spectrogram each, from any model of the registry or of the package."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from pipelines.console import console
from pipelines.evaluate.spectrograms import check_spectrograms, plot_spectrogram_with_axes
from pipelines.inference.clip_batch import make_clips
from pipelines.inference.clip_files import write_clip, write_whole
from pipelines.inference.generator import GeneratedClip, Generator, open_generator
from pipelines.inference.prompt_file import read_prompt_file
from pipelines.inference.prompts import check_prompts, parse_prompt
from pipelines.registry.names import RegistryError
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.tracking.client import has_registry
from pipelines.tracking.sqlite_registry import open_for_reading
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.config.sections import InputsConfig
from presto_core.device import resolve_device
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR, list_pretrained, make_pretrained_uri
from presto_core.models.recorded_components import OwnFolders

MANY_STEPS = 16  # fewer are for few-step generators


@dataclass(frozen=True)
class ClipFiles:
    """One generated clip on disk."""

    prompt: str
    wav: Path
    spectrogram: Path | None
    seconds: float
    took_ms: float


def run(config: GenerateStage) -> list[ClipFiles]:
    """Generate one clip per prompt; a prompt given twice is one clip.

    Raises:
        UserError: no prompt, unknown model or key, a tempo out of range, output folder that cannot be written.
    """
    settings = config.generate
    if settings.prompts_file:
        return run_batch(config)
    if not settings.prompts:
        raise UserError('nothing to generate: give a prompt, as in presto generate "solo piano, slow, A minor"')
    prompts = list(dict.fromkeys(check_prompts(settings.prompts)))
    if repeated := len(settings.prompts) - len(prompts):
        console.print(f"generate: {repeated} repeated prompts left out: a prompt gives one clip per generate.seed")
    for prompt in prompts:
        parse_prompt(prompt, tempo_bpm=settings.tempo_bpm, key=settings.key)
    torch.set_num_threads(config.cluster.torch_threads)
    device = resolve_device(config.cluster.device, setting="cluster.device")
    artifact, folders = find_model(config), OwnFolders.from_config(config.storage)
    generator = open_generator(artifact.uri, device=device, folders=folders, content=content_hash(artifact.manifest))
    if generator.artifact.kind != "generator" and settings.steps < MANY_STEPS:
        console.print(
            f"generate: {generator.artifact.id} is not distilled for few steps ({generator.artifact.kind}), and "
            f"generate.steps={settings.steps} is few for it; generate.steps=40 sounds better"
        )
    folder = _make_folder(settings.output)
    can_plot = check_spectrograms("generate", len(prompts))
    return [_generate(settings, generator, prompt, folder, can_plot=can_plot) for prompt in prompts]


def run_batch(config: GenerateStage) -> list[ClipFiles]:
    """Generate a clip per row of `generate.prompts_file`; raises what `read_prompt_file` and `make_clips` do."""
    settings = config.generate
    if settings.prompts:
        raise UserError(
            f"generate.prompts_file={settings.prompts_file} and the prompt {settings.prompts[0]!r} are both given; "
            "add the prompt to the file, or leave one out"
        )
    requests = read_prompt_file(Path(settings.prompts_file), settings)
    folder = _make_folder(settings.output)
    artifact = find_model(config)
    rows = make_clips(config, requests, artifact, folder)
    files = [(row, folder / row["file"]) for row in rows]
    return [ClipFiles(row["prompt"], wav, None, soundfile.info(wav).duration, float(row["ms"])) for row, wav in files]


def find_model(config: GenerateStage) -> Artifact:
    """Return the model that `inputs.generator` names; without one, the registry's candidate, else the package's.

    A model of the package needs neither MLflow nor storage, and none is opened for it.

    Raises:
        UserError: it is unknown, missing or damaged, or there is none.
    """
    if reference := config.inputs.generator:
        return resolve_pretrained(reference) or _resolve_registered(config, reference)
    default = InputsConfig().generator
    if has_registry(config.tracking):
        with suppress(RegistryError):
            artifact = _resolve_registered(config, default)
            console.print(f"generate: with {default} of the registry (--model {DEFAULT_GENERATOR}: the package's)")
            return artifact
    if DEFAULT_GENERATOR not in (installed := list_pretrained()):
        named = " or ".join(f"--model {name}" for name in installed) or "--model"
        raise UserError(
            f"there is no generator: the registry has no {default}, and this installation no {DEFAULT_GENERATOR}; "
            f"name a model with {named} (a teacher needs generate.steps=40), or make a generator: presto demo, or "
            "make pretrained"
        )
    console.print(f"generate: with {DEFAULT_GENERATOR}, which comes with the package (--model names another)")
    return read_artifact(open_folder(make_pretrained_uri(DEFAULT_GENERATOR)))


def _resolve_registered(config: GenerateStage, reference: str) -> Artifact:
    return resolve(open_for_reading(config.tracking), reference, absolute_uri(config.storage.root))


def _generate(
    settings: GenerateConfig, generator: Generator, prompt: str, folder: Path, *, can_plot: bool
) -> ClipFiles:
    started = time.perf_counter()
    (generated,) = generator.generate(
        [prompt],
        steps=settings.steps,
        seed=settings.seed,
        seconds=settings.seconds,
        tempo_bpm=settings.tempo_bpm,
        key=settings.key,
        schedule=settings.schedule,
    )
    took_ms = (time.perf_counter() - started) * 1e3
    wav, spectrogram = _write_files(generated, folder, can_plot=can_plot)
    clip = ClipFiles(prompt, wav, spectrogram, generated.seconds, took_ms)
    description = f"{clip.seconds:.1f} s in {took_ms:.0f} ms ({_describe(generated)})"
    console.print(f"generate: {description}: {clip.wav}", markup=False)
    return clip


def _make_folder(output: str) -> Path:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"generate.output={output} cannot be made a folder: {error.strerror}; name another") from None
    return folder


def _write_files(clip: GeneratedClip, folder: Path, *, can_plot: bool) -> tuple[Path, Path | None]:
    try:
        wav = write_clip(clip, folder)
        if not can_plot:
            return wav, None
        spectrogram = wav.with_suffix(".png")
        write_whole(spectrogram, plot_spectrogram_with_axes(clip.audio.mean(axis=0), clip.sample_rate_hz, clip.prompt))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}; free some space or set generate.output") from error
    return wav, spectrogram


def _describe(clip: GeneratedClip) -> str:
    """Say what the clip was made with, tempo and key as understood, and what was changed."""
    understood = [f"{clip.tempo_bpm:g} bpm"] if clip.tempo_bpm is not None else []
    understood += [clip.key] if clip.key else []
    turned_down = [f"turned down {-clip.gain_db:.1f} dB, or it would clip"] if round(clip.gain_db, 1) else []
    where = [] if clip.device == "cpu" else [f"on {clip.device}"]
    return ", ".join([f"{clip.steps} steps of {clip.model_id}", *where, *understood, *turned_down])
