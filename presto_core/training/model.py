"""A trained network as files of an artifact: weights plus all that is needed to use them without the training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from presto_core.config.sections import NetworkConfig
from presto_core.networks.dit import DiT
from presto_core.registry.store import Folder, StoreError, read_file

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a model's artifact says about the model.

    Attributes:
        network: width, depth, ... of the transformer.
        channels, frames: latent shape it was trained on.
        sigma_data: standard deviation of the normalised latents.
        mean, std: [channels] statistics that undo the normalisation.
        codec, text: which codec and text encoder the latents and captions went through, with digests.
    """

    network: dict[str, Any]
    channels: int
    frames: int
    sigma_data: float
    mean: list[float]
    std: list[float]
    codec: dict[str, Any]
    text: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def new_network(self) -> DiT:
        """An untrained network of this shape."""
        return DiT(NetworkConfig(**self.network), channels=self.channels, text_dim=self.text["dim"])

    def denormalised(self, x0: Tensor) -> Tensor:
        """Network output [B, C, T] -> latents as the codec knows them."""
        mean, std = (torch.tensor(v, device=x0.device, dtype=x0.dtype)[:, None] for v in (self.mean, self.std))
        return x0 * std + mean


def weights_file(network: nn.Module) -> dict[str, bytes]:
    """The weights as an artifact's file."""
    return {WEIGHTS: save({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})}


def load_model(folder: Folder, manifest: dict[str, Any]) -> tuple[DiT, ModelCard]:
    """The network of a teacher or generator artifact, in evaluation mode, with its card.

    Raises:
        StoreError: the artifact holds no model, its weights are damaged or do not fit.
    """
    if "model" not in manifest:
        raise StoreError(f"{folder.uri} is a {manifest.get('kind')}, not a teacher or generator")
    card = ModelCard(**manifest["model"])
    network = card.new_network()
    try:
        network.load_state_dict(load(read_file(folder, WEIGHTS, manifest)))
    except (RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise StoreError(f"the weights in {folder.uri} do not fit the network they are stored with: {why}") from error
    return network.eval(), card
