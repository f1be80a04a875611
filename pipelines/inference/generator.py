"""`load_generator("models:/presto-generator@champion")`: load a registered model and generate music from Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.inference.model import Model, open_model, sample_generator, sample_teacher
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.sections import StorageConfig, TrackingConfig
from presto_core.diffusion.conditioning import Conditioning, key_index
from presto_core.errors import UserError
from presto_core.training.state import make_step_rng


@dataclass(frozen=True)
class GeneratedClip:
    """One generated clip.

    Attributes:
        audio: [channels, samples], float32 in [-1, 1].
    """

    prompt: str
    audio: npt.NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz


@dataclass(frozen=True)
class Generator:
    """A model with everything it takes to turn prompts into music."""

    model: Model

    @property
    def artifact(self) -> Artifact:
        """The artifact it was loaded from."""
        return self.model.artifact

    def generate(
        self,
        prompts: Sequence[str],
        *,
        steps: int = 4,
        seed: int = 0,
        seconds: float | None = None,
        tempo_bpm: float | None = None,
        key: str | None = None,
        schedule: ScheduleConfig | None = None,
    ) -> list[GeneratedClip]:
        """Generate one clip per prompt; the same prompt, seed and steps give the same clip, whatever the other prompts.

        Args:
            steps: steps of ping-pong sampling for a few-step generator, else of the teacher's sampler.
            schedule: noise levels; None for those that the model stores for `steps`, else the default ones.
            seconds: length of a clip; None for the length the model was trained on.

        Raises:
            UserError: `steps` is below 1, or the key is unknown.
        """
        if steps < 1:
            raise UserError(f"steps={steps} must be at least 1")
        return [
            self._generate_one(
                prompt, steps=steps, seed=seed, seconds=seconds, tempo_bpm=tempo_bpm, key=key, schedule=schedule
            )
            for prompt in prompts
        ]

    def _generate_one(
        self,
        prompt: str,
        *,
        steps: int,
        seed: int,
        seconds: float | None,
        tempo_bpm: float | None,
        key: str | None,
        schedule: ScheduleConfig | None,
    ) -> GeneratedClip:
        model, rng = self.model, make_step_rng(seed, total_step=0)
        noise = model.draw_noise(1, generator=rng, frames=count_frames(model, seconds))
        cond = conditions_from_prompts(model, [prompt], tempo_bpm=tempo_bpm, key=key)
        if model.artifact.kind == "generator":
            x0 = sample_generator(model, noise, cond, steps=steps, schedule=schedule, generator=rng)
        else:
            x0 = sample_teacher(model, noise, cond, sampler=BaseSampler(steps=steps), schedule=schedule)
        return GeneratedClip(prompt, model.decode(x0)[0].numpy().clip(-1, 1), model.codec.sample_rate_hz)


def load_generator(
    reference: str = "models:/presto-generator@champion",
    *,
    tracking_uri: str = "",
    storage_root: str = StorageConfig().root,
    device: torch.device | str = "cpu",
) -> Generator:
    """Load the model named by models:/NAME@ALIAS, NAME@ALIAS, an alias of presto-generator, an id or a URI; or one of
    the package, such as presto-tiny-ls, for which no registry is opened.

    Args:
        tracking_uri: URI of MLflow; empty for MLFLOW_TRACKING_URI, else the database under .presto.
        storage_root: where artifact ids are looked up.

    Raises:
        UserError: it is not registered, missing, damaged, or not a model.
    """
    artifact = resolve_pretrained(reference)
    if artifact is None:
        tracker = open_tracker(TrackingConfig(uri=tracking_uri))
        artifact = resolve(tracker.client, reference, absolute_uri(storage_root))
    return open_generator(artifact.uri, device=device)


def open_generator(uri: str, *, device: torch.device | str = "cpu") -> Generator:
    """Open the model in an artifact's folder; raises StoreError if it is missing, damaged, or not a model."""
    return Generator(open_model(uri, device=device))


FRAME_MULTIPLE = 16  # lengths are rounded to a multiple of it; every patch size in use divides it


def conditions_from_prompts(
    model: Model, prompts: list[str], *, tempo_bpm: float | None = None, key: str | None = None
) -> Conditioning:
    """Encode prompts as conditions; tempo and key default to those in the prompt ("90 bpm", "in D minor").

    Raises:
        UserError: the key is unknown.
    """
    text = model.text_encoder.encode(prompts)
    tempi = [tempo_bpm or _parse_tempo(p) for p in prompts]
    try:
        keys = [key_index(key or _parse_key(p)) for p in prompts]
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


def _parse_tempo(prompt: str) -> float | None:
    match = re.search(r"(\d{2,3})\s*bpm", prompt, re.IGNORECASE)
    return float(match[1]) if match else None


def _parse_key(prompt: str) -> str | None:
    match = re.search(r"\b([A-G][#b]?) (major|minor)\b", prompt)
    return f"{match[1]} {match[2]}" if match else None


def count_frames(model: Model, seconds: float | None) -> int:
    """Return the latent frames of a clip of this length; None means the length the model was trained on."""
    if seconds is None:
        return model.card.frames
    frames = seconds * model.codec.sample_rate_hz / model.codec.hop
    return max(FRAME_MULTIPLE, round(frames / FRAME_MULTIPLE) * FRAME_MULTIPLE)
