"""`load_generator("models:/presto-generator@champion")`: a model of the register, ready to make music from Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.inference.model import (
    Model,
    open_model,
    sample_base,
    sample_student,
)
from pipelines.registry.resolve import resolve
from pipelines.storage.filesystem import absolute
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.sections import StorageConfig, TrackingConfig
from presto_core.diffusion.conditioning import Conditioning, key_index
from presto_core.errors import UserError
from presto_core.training.state import step_generator


@dataclass(frozen=True)
class GeneratedClip:
    """One piece.

    Attributes:
        audio: [channels, samples], float32 in -1 ... 1.
    """

    prompt: str
    audio: npt.NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz


@dataclass(frozen=True)
class Generator:
    """A model with all that it takes to turn prompts into music."""

    model: Model

    @property
    def artifact(self) -> Artifact:
        """What it was loaded from."""
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
        schedule: ScheduleConfig = ScheduleConfig(),
    ) -> list[GeneratedClip]:
        """One clip a prompt; the same prompt, seed and steps give the same clip, whatever else is asked for.

        Args:
            steps: of ping-pong sampling for a few-step generator, of the base's sampler else.
            seconds: length of a clip; None for the one the model was trained on.

        Raises:
            UserError: no steps, or no key of that name.
        """
        if steps < 1:
            raise UserError(f"steps={steps} must be at least 1")
        return [
            self._one(prompt, steps=steps, seed=seed, seconds=seconds, tempo_bpm=tempo_bpm, key=key, schedule=schedule)
            for prompt in prompts
        ]

    def _one(
        self,
        prompt: str,
        *,
        steps: int,
        seed: int,
        seconds: float | None,
        tempo_bpm: float | None,
        key: str | None,
        schedule: ScheduleConfig,
    ) -> GeneratedClip:
        model, rng = self.model, step_generator(seed, total_step=0)
        noise = model.noise(1, generator=rng, frames=frames_of(model, seconds))
        cond = told(model, [prompt], tempo_bpm=tempo_bpm, key=key)
        if model.artifact.kind == "generator":
            x0 = sample_student(model, noise, cond, steps=steps, schedule=schedule, generator=rng)
        else:
            x0 = sample_base(model, noise, cond, how=BaseSampler(steps=steps), schedule=schedule)
        return GeneratedClip(prompt, model.decode(x0)[0].numpy().clip(-1, 1), model.codec.sample_rate_hz)


def load_generator(
    reference: str = "models:/presto-generator@champion",
    *,
    tracking_uri: str = "",
    storage_root: str = StorageConfig().root,
    device: torch.device | str = "cpu",
) -> Generator:
    """The model that a reference means: models:/NAME@ALIAS, NAME@ALIAS, an alias of presto-generator, an id or a URI.

    Args:
        tracking_uri: of MLflow; empty for MLFLOW_TRACKING_URI, else the data base under .presto.
        storage_root: where an artifact's id is looked up.

    Raises:
        UserError: unknown to the registry, missing, damaged, or no model.
    """
    tracker = open_tracker(TrackingConfig(uri=tracking_uri))
    return open_generator(resolve(tracker.client, reference, absolute(storage_root)).uri, device=device)


def open_generator(uri: str, *, device: torch.device | str = "cpu") -> Generator:
    """The model in an artifact's folder; raises StoreError where it is missing, damaged, or no model."""
    return Generator(open_model(uri, device=device))


PATCH_ROOM = 16  # lengths are rounded to a multiple of it, which every patch size in use divides


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


def frames_of(model: Model, seconds: float | None) -> int:
    """Latent frames of a clip of this length; None means the length the model was trained on."""
    if seconds is None:
        return model.card.frames
    wanted = seconds * model.codec.sample_rate_hz / model.codec.hop
    return max(PATCH_ROOM, round(wanted / PATCH_ROOM) * PATCH_ROOM)
