"""A model's artifact (teacher, layers, generator), ready to make music: with codec and text encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.store import StoreError
from presto_core.audio.codec import Codec
from presto_core.audio.load_codec import load_codec
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.guidance import guided
from presto_core.models.model_card import ModelCard, load_model
from presto_core.networks.network import Network
from presto_core.samplers.edm import SAMPLERS
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas
from presto_core.text.encoder import TextEncoder, load_text_encoder


@dataclass(frozen=True)
class Model:
    """A network with what surrounds it.

    Attributes:
        artifact: what it was loaded from.
        card: shapes, normalisation, codec and text encoder it belongs to.
        network: the raw network, on `device`, in evaluation mode.
        denoise: its denoiser.
    """

    artifact: Artifact
    card: ModelCard
    network: Network
    denoise: EDMDenoiser
    device: torch.device

    @cached_property
    def budget_at(self) -> Callable[[float], int] | None:
        """Blocks to run at a noise level, as it was trained; None runs all."""
        return self.card.budget.at if self.card.budget else None

    @cached_property
    def codec(self) -> Codec:
        """The codec its latents belong to.

        Raises:
            StoreError: the codec here has other weights than the one the data set was encoded with.
        """
        said = self.card.codec
        codec = load_codec(said["kind"], path=said["path"] or None)
        _require_digest("codec", said, codec.digest)
        return codec

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder its captions went through; raises StoreError as `codec` does."""
        said = self.card.text
        encoder = load_text_encoder(said["kind"], path=said["path"], max_tokens=said["max_tokens"])
        _require_digest("text encoder", said, encoder.digest)
        return encoder

    def noise(self, count: int, *, generator: torch.Generator, frames: int | None = None) -> Tensor:
        """Where sampling starts: [count, C, T] ~ N(0, I)."""
        shape = (count, self.card.channels, frames or self.card.frames)
        return torch.randn(shape, generator=generator, device=self.device)

    @torch.inference_mode()
    def decode(self, x0: Tensor) -> Tensor:
        """Normalised latents [B, C, T] -> audio [B, A, N]."""
        return self.codec.decode(self.card.denormalised(x0).cpu())


def open_model(uri: str, *, device: torch.device | str = "cpu") -> Model:
    """Load a model; every byte is checked against its manifest.

    Raises:
        StoreError: missing, damaged, or no model.
    """
    folder = open_folder(uri)
    artifact = read_artifact(folder)
    network, card = load_model(folder, artifact.manifest)
    place = torch.device(device)
    network = network.to(place).requires_grad_(False)
    return Model(artifact, card, network, EDMDenoiser(network, card.sigma_data), place)


@torch.inference_mode()
def sample_base(
    model: Model, noise: Tensor, cond: Conditioning | None, *, how: BaseSampler, schedule: ScheduleConfig
) -> Tensor:
    """Sample the base, or a layer-distilled model at its budget, with a deterministic sampler -> [B, C, T]."""
    sigmas = karras_sigmas(how.steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho)
    return SAMPLERS[how.sampler](guided(model.denoise, how.guidance_scale), noise, sigmas, cond, model.budget_at)


@torch.inference_mode()
def sample_student(
    model: Model,
    noise: Tensor,
    cond: Conditioning | None,
    *,
    steps: int,
    schedule: ScheduleConfig,
    generator: torch.Generator,
) -> Tensor:
    """Sample a distilled generator by ping-pong -> [B, C, T]."""
    sigmas = few_step_sigmas(steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho)
    return ping_pong(model.denoise, noise, sigmas, cond, generator=generator, budget=model.budget_at)


def _require_digest(what: str, said: dict[str, Any], found: str) -> None:
    if said["digest"] != found:
        raise StoreError(
            f"the {what} {said['kind']} here (digest {found[:12]}) is not the one this model was made with "
            f"({said['digest'][:12]}); point {what.split()[0]}.path at that one, or ingest and train again"
        )
