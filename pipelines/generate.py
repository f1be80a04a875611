"""Stage: prompts -> music: a WAV and a spectrogram each, from any model of the registry."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from pipelines import plots
from pipelines.models import Model, open_model, sample_base, sample_student
from pipelines.progress import console
from pipelines.storage import absolute
from pipelines.tracking import open_tracker
from presto_core.config.errors import UserError
from presto_core.config.sampling import BaseSampler
from presto_core.config.schema import GenerateStage
from presto_core.diffusion.conditioning import Conditioning, key_index
from presto_core.training.state import step_generator

PATCH_ROOM = 16  # lengths are rounded to a multiple of it, which every patch size in use divides


@dataclass(frozen=True)
class Clip:
    """One generated piece on disk."""

    prompt: str
    wav: Path
    spectrogram: Path
    seconds: float
    took_ms: float


def run(config: GenerateStage) -> list[Clip]:
    """Generate one clip a prompt.

    Raises:
        UserError: no prompt, unknown model or key, output folder that cannot be written.
    """
    settings = config.generate
    if not settings.prompts:
        raise UserError('nothing to generate: give a prompt, as in presto generate "solo piano, slow, A minor"')
    torch.set_num_threads(config.cluster.torch_threads)
    artifact = open_tracker(config.tracking).resolve(config.inputs.generator, absolute(config.storage.root))
    model = open_model(artifact.uri)
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    return [_generate(config, model, prompt, folder) for prompt in settings.prompts]


def _generate(config: GenerateStage, model: Model, prompt: str, folder: Path) -> Clip:
    started = time.perf_counter()
    settings, rate_hz = config.generate, model.codec.sample_rate_hz
    rng = step_generator(settings.seed, total_step=0)
    noise = model.noise(1, generator=rng, frames=_frames(model, settings.seconds))
    cond = told(model, [prompt], tempo_bpm=settings.tempo_bpm, key=settings.key)
    if model.artifact.kind == "generator":
        x0 = sample_student(model, noise, cond, steps=settings.steps, schedule=settings.schedule, generator=rng)
    else:
        x0 = sample_base(model, noise, cond, how=BaseSampler(steps=settings.steps), schedule=settings.schedule)
    audio = model.decode(x0)[0].numpy()
    took_ms = (time.perf_counter() - started) * 1e3
    clip = _write(folder, prompt, audio.clip(-1, 1), rate_hz, took_ms, settings.seed)
    what = f"{clip.seconds:.1f} s in {took_ms:.0f} ms ({settings.steps} steps of {model.artifact.id})"
    console.print(f"generate: {what}: {clip.wav}")
    return clip


def told(model: Model, prompts: list[str], *, tempo_bpm: float | None = None, key: str | None = None) -> Conditioning:
    """Prompts as conditions. Tempo and key are read from the prompt where they are not given ("90 bpm", "in D minor").

    Raises:
        UserError: the key is no key.
    """
    text = model.text.encode(prompts)
    tempi = [tempo_bpm or _tempo_in(p) for p in prompts]
    try:
        keys = [key_index(key or _key_in(p)) for p in prompts]
    except ValueError as error:
        raise UserError(f"generate.key: {error}") from None
    return Conditioning(
        pooled=text.pooled,
        tokens=text.tokens,
        mask=text.mask,
        tempo_bpm=torch.tensor([t if t is not None else torch.nan for t in tempi]),
        key=torch.tensor(keys),
        keep=torch.ones(len(prompts), dtype=torch.bool),
    )


def _tempo_in(prompt: str) -> float | None:
    found = re.search(r"(\d{2,3})\s*bpm", prompt, re.IGNORECASE)
    return float(found[1]) if found else None


def _key_in(prompt: str) -> str | None:
    found = re.search(r"\b([A-G][#b]?) (major|minor)\b", prompt)
    return f"{found[1]} {found[2]}" if found else None


def _frames(model: Model, seconds: float | None) -> int:
    if seconds is None:
        return model.card.frames
    wanted = seconds * model.codec.sample_rate_hz / model.codec.hop
    return max(PATCH_ROOM, round(wanted / PATCH_ROOM) * PATCH_ROOM)


def _write(folder: Path, prompt: str, audio: plots.Samples, rate_hz: int, took_ms: float, seed: int) -> Clip:
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "clip"
    wav, picture = folder / f"{slug}-{seed}.wav", folder / f"{slug}-{seed}.png"
    try:
        soundfile.write(wav, audio.T, rate_hz, subtype="PCM_16")
        picture.write_bytes(plots.spectrogram(audio.mean(axis=0), rate_hz, prompt))
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write {wav}: {error}; free some space or set generate.output") from error
    return Clip(prompt, wav, picture, audio.shape[1] / rate_hz, took_ms)
