"""Open a model's artifact (teacher, layers, generator) with its codec and text encoder, and sample from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pipelines.console import console
from pipelines.storage.filesystem import open_folder
from pipelines.storage.node_cache import cache_folder
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.audio.codec import Codec
from presto_core.config.sampling import BaseSampler, ScheduleConfig, describe_computing
from presto_core.device import check_autocast, resolve_device
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Denoiser, EDMDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.models.model_card import ModelCard, load_model
from presto_core.models.recorded_components import OwnFolders, load_recorded_codec, load_recorded_encoder
from presto_core.networks.compilation import CompiledNetwork
from presto_core.networks.network import Network
from presto_core.networks.precision import round_matrices
from presto_core.samplers.edm import SAMPLERS
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import list_few_step_levels, list_ode_levels
from presto_core.text.encoder import TextEncoder


class Described(Protocol):
    """What is known of a model before it is opened."""

    @property
    def artifact(self) -> Artifact: ...

    @property
    def card(self) -> ModelCard: ...


@dataclass(frozen=True)
class ModelDescription:
    """The description of a model in its manifest, without its weights."""

    artifact: Artifact

    @cached_property
    def card(self) -> ModelCard:
        return ModelCard(**self.artifact.manifest["model"])


@dataclass(frozen=True)
class Model:
    """A network with its card, denoiser, codec and text encoder.

    Attributes:
        artifact: the artifact it was loaded from.
        card: shapes, normalization, codec and text encoder it belongs to.
        network: the raw network, on `device`, in evaluation mode.
        denoise: its denoiser, of compiled graphs if it was opened so.
        device: where all of it computes.
        folders: the user's copies of weights that are not in the package.
        computing: how the network computes, if not plainly in fp32 (`describe_computing`).
    """

    artifact: Artifact
    card: ModelCard
    network: Network
    denoise: EDMDenoiser
    device: torch.device
    folders: OwnFolders = field(default_factory=OwnFolders)
    computing: str = ""

    @cached_property
    def blocks_at(self) -> Callable[[float], int] | None:
        """Blocks to run at a noise level, as in training; None runs all."""
        return self.card.budget.blocks_at if self.card.budget else None

    @cached_property
    def codec(self) -> Codec:
        """The codec its latents belong to.

        Raises:
            StoreError: its weights differ from those the data set was encoded with, or no folder of them is given.
        """
        return load_recorded_codec(self.card.codec, self.folders, device=self.device)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder of its captions; raises StoreError as `codec` does."""
        return load_recorded_encoder(self.card.text, self.folders, frames=self.card.frames, device=self.device)

    def draw_noise(self, count: int, *, generator: torch.Generator, frames: int | None = None) -> Tensor:
        """Return the noise that sampling starts from: [count, C, T] ~ N(0, I)."""
        shape = (count, self.card.channels, frames or self.card.frames)
        return torch.randn(shape, generator=generator, device=self.device)

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, A, N] to normalized latents [B, C, floor(N / hop)], on the model's device."""
        return self.card.normalize(self.codec.encode(audio))

    @torch.inference_mode()
    def decode(self, x0: Tensor) -> Tensor:
        """Decode normalized latents [B, C, T] to audio [B, A, N], on the model's device."""
        return self.codec.decode(self.card.denormalize(x0))

    def decode_in_parts(self, x0: Tensor) -> Iterator[Tensor]:
        """Yield the audio of normalized latents [1, C, T] in parts [1, A, n], the first of them soon."""
        return self.codec.decode_in_parts(self.card.denormalize(x0))


def open_model(
    uri: str,
    *,
    device: torch.device | str = "cpu",
    folders: OwnFolders = OwnFolders(),
    content: str = "",
    autocast: str = "none",
    compiled: bool = False,
    one_thread: bool = True,
) -> Model:
    """Load a model and verify every byte against its manifest.

    Args:
        device: where it computes, with its codec, text encoder, conditions and noise: auto, cpu, cuda[:n] or mps.
        folders: the user's copies of a codec and text encoder that are not in the package.
        content: content hash that the manifest must have; empty if it was not resolved before.
        autocast: bf16 computes in bf16 inside the network, with its matrices in bf16.
        compiled: sample with compiled graphs (`CompiledNetwork`), kept in this node's cache folder.
        one_thread: whether the thread that opens the model is the one that samples.

    Raises:
        StoreError: it is missing, damaged, not a model, or has other content.
        DeviceError: the device is unknown, not there, or has no bf16.
        UserError: it is to be compiled, and there is no C++ compiler.
    """
    torch_device, folder = resolve_device(device), open_folder(uri)
    dtype = torch.bfloat16 if autocast == "bf16" else None
    check_autocast(torch_device, dtype, setting="autocast")
    artifact = read_artifact(folder, content=content)
    network, card = load_model(folder, artifact.manifest)
    network = network.to(torch_device).requires_grad_(False)
    if dtype:
        round_matrices(network, dtype)
    sampled = compile_for_sampling(network, one_thread=one_thread) if compiled else network
    denoise = EDMDenoiser(sampled, card.make_precondition(), dtype)
    computing = describe_computing(autocast=autocast, compiled=compiled)
    return Model(artifact, card, network, denoise, torch_device, folders, computing)


def compile_for_sampling(network: Network, *, one_thread: bool) -> CompiledNetwork:
    """Return a network that computes the same up to rounding; what it compiles is there at the next start."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return CompiledNetwork(
        network, setting="compile", report=lambda line: console.print(f"compiling: {line}"), one_thread=one_thread
    )


@torch.inference_mode()
def sample_teacher(
    model: Model,
    noise: Tensor,
    cond: Conditioning | None,
    *,
    sampler: BaseSampler,
    schedule: ScheduleConfig | None,
    denoise: Denoiser | None = None,
) -> Tensor:
    """Sample the teacher, or a layer-distilled model at its budget, with a deterministic sampler -> [B, C, T].

    Args:
        denoise: in place of the model's own denoiser, such as one that edits or can be stopped.
    """
    schedule = schedule or model.card.default_schedule
    sigmas = list_ode_levels(sampler.steps, schedule)
    guided = make_guided_denoiser(
        denoise or model.denoise,
        sampler.guidance_scale,
        interval=sampler.guidance_interval,
        rescale=sampler.guidance_rescale,
    )
    return SAMPLERS[sampler.sampler](guided, noise, sigmas, cond, model.blocks_at)


@torch.inference_mode()
def sample_generator(
    model: Model,
    noise: Tensor,
    cond: Conditioning | None,
    *,
    steps: int,
    schedule: ScheduleConfig | None,
    generator: torch.Generator | Sequence[torch.Generator],
    denoise: Denoiser | None = None,
) -> Tensor:
    """Sample a distilled generator by ping-pong -> [B, C, T]; without a schedule, by the one its card has.

    Args:
        generator: of all noise, or one per row (`ping_pong`).
        denoise: as in `sample_teacher`.
    """
    schedule = schedule or model.card.schedule_at(steps)
    sigmas = list_few_step_levels(steps, schedule)
    return ping_pong(denoise or model.denoise, noise, sigmas, cond, generator=generator, budget=model.blocks_at)
