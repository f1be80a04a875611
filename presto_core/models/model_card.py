"""A trained network as files of an artifact: weights plus everything needed to use them without the training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_file
from presto_core.config.sampling import ScheduleConfig
from presto_core.diffusion.preconditions import Edm, Precondition, read_precondition
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.network import Network
from presto_core.networks.table import find_network_kind, network_depth, read_settings

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """The description of a model in its artifact's manifest.

    Attributes:
        network: settings of the network, for the `kind` they name (`presto_core.networks.table`).
        channels, frames: latent shape the model is trained on.
        sigma_data: standard deviation of the normalised latents.
        mean, std: [channels] statistics that invert the normalisation.
        codec, text: codec and text encoder of the training data, with digests.
        layer_budget: `LayerBudget` the model is trained with; None runs all blocks.
        few_step_schedules: noise levels of a few-step generator that were best on validation clips, by number of steps:
            {"4": {"sigma_min": ..., "sigma_max": ..., "rho": ...}}, or with the levels as "sigmas"; None if none were
            chosen.
        precondition: parameterisation of an imported network; None is EDM's, with `sigma_data`.
        sigma_range: lowest and highest noise level of an imported teacher's own scheduler.
    """

    network: dict[str, Any]
    channels: int
    frames: int
    sigma_data: float
    mean: list[float]
    std: list[float]
    codec: dict[str, Any]
    text: dict[str, Any]
    layer_budget: dict[str, Any] | None = None
    few_step_schedules: dict[str, dict[str, Any]] | None = None
    precondition: dict[str, Any] | None = None
    sigma_range: list[float] | None = None

    def schedule_at(self, steps: int) -> ScheduleConfig:
        """The noise levels chosen for this number of steps; the default ones if none were."""
        chosen = (self.few_step_schedules or {}).get(str(steps))
        return ScheduleConfig(**chosen) if chosen else self.default_schedule

    @property
    def default_schedule(self) -> ScheduleConfig:
        """Noise levels of a sampler if none are given: of the range that an imported teacher's scheduler has."""
        if self.sigma_range is None:
            return ScheduleConfig()
        return ScheduleConfig(sigma_min=self.sigma_range[0], sigma_max=self.sigma_range[1])

    def make_precondition(self) -> Precondition:
        """Return the parameterisation of the network."""
        return read_precondition(self.precondition) if self.precondition else Edm(self.sigma_data)

    @property
    def is_imported(self) -> bool:
        """Whether the network is of a teacher that was not trained here: it takes the codec's latents as they are."""
        return self.precondition is not None

    @property
    def clip_seconds(self) -> float | None:
        """Length of every clip of a model that always makes clips of one length; None for any other."""
        return self.network.get("clip_seconds") or None

    @property
    def budget(self) -> LayerBudget | None:
        """The layer budget that training used and inference must use."""
        return LayerBudget.from_dict(self.layer_budget) if self.layer_budget else None

    def check(self) -> None:
        """Refuse numbers that are not finite, or not those of all channels; raises ValueError."""
        if not all(map(math.isfinite, (*self.mean, *self.std, self.sigma_data))) or self.sigma_data <= 0:
            raise ValueError("its statistics are not finite")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"its statistics are not those of {self.channels} channels")

    def to_dict(self) -> dict[str, Any]:
        card = asdict(self)
        for name in ("few_step_schedules", "precondition", "sigma_range"):
            if card[name] is None:  # as in manifests from before there were any
                del card[name]
        return card

    @property
    def depth(self) -> int:
        """Number of blocks of the network."""
        return network_depth(self.network)

    def build_network(self) -> Network:
        """Build an untrained network of this kind and shape."""
        kind = find_network_kind(self.network)
        return kind.build(read_settings(self.network), self.channels, self.text["dim"], self.budget)

    def normalize(self, latents: Tensor) -> Tensor:
        """Convert latents [B, C, T] from the codec's scale to the network's."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, x0: Tensor) -> Tensor:
        """Convert network output [B, C, T] to latents at the codec's scale."""
        mean, std = self._statistics(x0)
        return x0 * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=like.device, dtype=like.dtype)[:, None] for v in (self.mean, self.std))
        return mean, std


def serialize_network(network: nn.Module) -> dict[str, bytes]:
    """Return the weights of a network as an artifact file."""
    return serialize_state(network.state_dict())


def serialize_state(state: dict[str, Tensor]) -> dict[str, bytes]:
    """Return an unsharded state dict as an artifact file."""
    return {WEIGHTS: save({name: value.detach().cpu().contiguous() for name, value in state.items()})}


def load_model(folder: Folder, manifest: dict[str, Any]) -> tuple[Network, ModelCard]:
    """Load the network of a model artifact (teacher, layers, generator) in evaluation mode, and its card.

    Raises:
        StoreError: the artifact contains no model, or its weights are damaged or do not fit.
    """
    if "model" not in manifest:
        raise StoreError(f"{folder.uri} is a {manifest.get('kind')}, not a model; name a trained model")
    try:
        card = ModelCard(**manifest["model"])
        card.check()
        network = card.build_network()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(f"model card of {folder.uri} cannot be read ({reason}); run its stage again") from error
    try:
        network.load_state_dict(load(read_file(folder, WEIGHTS, manifest)))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(
            f"weights in {folder.uri} do not fit the network of their model card ({reason}); run its stage again"
        ) from error
    return network.eval(), card
