"""Stage: prompts -> music: a WAV and a spectrogram each, from any model of the registry."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from pipelines.console import console
from pipelines.evaluate import plots
from pipelines.inference.generator import Generator, open_generator
from pipelines.registry.resolve import resolve
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.client import open_tracker
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.errors import UserError
from presto_core.extras import MissingPackageError, check_extra


@dataclass(frozen=True)
class ClipFiles:
    """One generated clip on disk."""

    prompt: str
    wav: Path
    spectrogram: Path | None
    seconds: float
    took_ms: float


def run(config: GenerateStage) -> list[ClipFiles]:
    """Generate one clip per prompt.

    Raises:
        UserError: no prompt, unknown model or key, output folder that cannot be written.
    """
    settings = config.generate
    if not settings.prompts:
        raise UserError('nothing to generate: give a prompt, as in presto generate "solo piano, slow, A minor"')
    torch.set_num_threads(config.cluster.torch_threads)
    artifact = resolve(open_tracker(config.tracking).client, config.inputs.generator, absolute_uri(config.storage.root))
    generator = open_generator(artifact.uri)
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    can_plot = _check_plots(len(settings.prompts))
    return [_generate(settings, generator, prompt, folder, can_plot=can_plot) for prompt in settings.prompts]


def _check_plots(count: int) -> bool:
    """Return whether spectrograms can be drawn; if not, print how many are skipped."""
    try:
        check_extra("plots", "drawing spectrograms")
    except MissingPackageError as error:
        console.print(f"generate: {count} spectrograms skipped: {error}", markup=False)
        return False
    return True


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
    audio, rate_hz = generated.audio, generated.sample_rate_hz
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "clip"
    wav = folder / f"{slug}-{settings.seed}.wav"
    spectrogram = wav.with_suffix(".png") if can_plot else None
    try:
        soundfile.write(wav, audio.T, rate_hz, subtype="PCM_16")
        if spectrogram:
            spectrogram.write_bytes(plots.plot_spectrogram_with_axes(audio.mean(axis=0), rate_hz, prompt))
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write {wav}: {error}; free some space or set generate.output") from error
    clip = ClipFiles(prompt, wav, spectrogram, audio.shape[1] / rate_hz, took_ms)
    description = f"{clip.seconds:.1f} s in {took_ms:.0f} ms ({settings.steps} steps of {generator.artifact.id})"
    console.print(f"generate: {description}: {clip.wav}")
    return clip
