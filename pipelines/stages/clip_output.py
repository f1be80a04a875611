"""What stages that make clips share: the model they take, the files they write, and the line that tells of a clip."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.console import console
from pipelines.evaluate.spectrograms import plot_spectrogram_with_axes
from pipelines.inference.clip import EditedClip, GeneratedClip
from pipelines.inference.clip_files import write_clip, write_whole
from pipelines.inference.generator import Generator, open_generator
from pipelines.registry.names import RegistryError
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.tracking.client import has_registry
from pipelines.tracking.sqlite_registry import open_for_reading
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.sampling import ClipConfig
from presto_core.config.sections import InputsConfig
from presto_core.config.stage import StageConfig
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


def open_stage_generator(config: StageConfig, *, steps: int) -> Generator:
    """Open the model of a stage on its device, and print if the steps are few for it."""
    torch.set_num_threads(config.cluster.torch_threads)
    device = resolve_device(config.cluster.device, setting="cluster.device")
    artifact, folders = find_model(config), OwnFolders.from_config(config.storage)
    settings: ClipConfig = getattr(config, config.NAME)
    content = content_hash(artifact.manifest)
    generator = open_generator(
        artifact.uri,
        device=device,
        folders=folders,
        content=content,
        autocast=settings.autocast,
        compiled=settings.compile,
    )
    if generator.artifact.kind != "generator" and steps < MANY_STEPS:
        console.print(
            f"{config.NAME}: {generator.artifact.id} is not distilled for few steps ({generator.artifact.kind}), and "
            f"{config.NAME}.steps={steps} is few for it; {config.NAME}.steps=40 sounds better"
        )
    return generator


def find_model(config: StageConfig) -> Artifact:
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
            console.print(f"{config.NAME}: with {default} of the registry (--model {DEFAULT_GENERATOR}: the package's)")
            return artifact
    if DEFAULT_GENERATOR not in (installed := list_pretrained()):
        named = " or ".join(f"--model {name}" for name in installed) or "--model"
        raise UserError(
            f"there is no generator: the registry has no {default}, and this installation no {DEFAULT_GENERATOR}; "
            f"name a model with {named} (a teacher needs generate.steps=40), or make a generator: presto demo, or "
            "make pretrained"
        )
    console.print(f"{config.NAME}: with {DEFAULT_GENERATOR}, which comes with the package (--model names another)")
    return read_artifact(open_folder(make_pretrained_uri(DEFAULT_GENERATOR)))


def _resolve_registered(config: StageConfig, reference: str) -> Artifact:
    return resolve(open_for_reading(config.tracking), reference, absolute_uri(config.storage.root))


def make_files(make: Callable[[], GeneratedClip], folder: Path, *, stage: str, can_plot: bool) -> ClipFiles:
    """Make a clip, write it with its spectrogram, and print what it was made with."""
    started = time.perf_counter()
    clip = make()
    took_ms = (time.perf_counter() - started) * 1e3
    wav, spectrogram = _write_files(clip, folder, stage=stage, can_plot=can_plot)
    console.print(f"{stage}: {clip.seconds:.1f} s in {took_ms:.0f} ms ({_describe(clip)}): {wav}", markup=False)
    return ClipFiles(clip.prompt, wav, spectrogram, clip.seconds, took_ms)


def list_sampling_arguments(settings: ClipConfig) -> dict[str, Any]:
    """The settings that all methods of a generator take, by the names of their arguments."""
    guidance = ("guidance_scale", "guidance_interval", "guidance_rescale", "negative_prompt")
    names = ("steps", "seed", "tempo_bpm", "key", "schedule", *guidance)
    return {name: getattr(settings, name) for name in names}


def make_folder(output: str, *, stage: str) -> Path:
    folder = Path(output)
    try:
        make_folders(folder)
    except OSError as error:
        raise UserError(f"{stage}.output={output} cannot be made a folder: {error.strerror}; name another") from None
    return folder


def _write_files(clip: GeneratedClip, folder: Path, *, stage: str, can_plot: bool) -> tuple[Path, Path | None]:
    try:
        wav = write_clip(clip, folder)
        if not can_plot:
            return wav, None
        spectrogram = wav.with_suffix(".png")
        write_whole(spectrogram, plot_spectrogram_with_axes(clip.audio.mean(axis=0), clip.sample_rate_hz, clip.prompt))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}; free some space or set {stage}.output") from error
    return wav, spectrogram


def _describe(clip: GeneratedClip) -> str:
    """Say what the clip was made with, tempo and key as understood, and what was changed."""
    understood = [f"{clip.tempo_bpm:g} bpm"] if clip.tempo_bpm is not None else []
    understood += [clip.key] if clip.key else []
    turned_down = [f"turned down {-clip.gain_db:.1f} dB, or it would clip"] if round(clip.gain_db, 1) else []
    where = [] if clip.device == "cpu" else [f"on {clip.device}"]
    where += [clip.computing] if clip.computing else []
    edited = _describe_edit(clip) if isinstance(clip, EditedClip) else []
    return ", ".join([f"{clip.steps} steps of {clip.model_id}", *where, *understood, *turned_down, *edited])


def _describe_edit(clip: EditedClip) -> list[str]:
    """Say what of the given audio was kept, and how much the sound changes at the seams."""
    kept_seconds = sum(stop - start for start, stop in clip.kept)
    kept = [f"{kept_seconds:.2f} s kept bit for bit"] if clip.kept else []
    return kept + ([] if clip.seam_db is None else [f"seams {clip.seam_db:.1f} dB"])
