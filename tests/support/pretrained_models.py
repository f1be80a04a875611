"""Untrained models with the real codec and text encoder, exported as models of the package are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.registry.export import export_artifact
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact
from presto_core.audio.load_codec import load_codec
from presto_core.config.sections import NetworkConfig
from presto_core.models.model_card import ModelCard, serialize_network
from presto_core.text.encoder import load_text_encoder

FRAMES, TOKENS = 32, 16


def make_card(
    network: dict[str, Any] | None = None, *, frames: int = FRAMES, tokens: int = TOKENS, sigma_data: float = 1.0
) -> ModelCard:
    """The card of a tiny network with what a user's installation has: the shipped codec and text encoder."""
    codec, text = load_codec("mel_pca"), load_text_encoder("minilm", path="", max_tokens=tokens)
    return ModelCard(
        network=network or NetworkConfig(dim=16, depth=2, heads=2, patch=2).model_dump(mode="json"),
        channels=codec.channels,
        frames=frames,
        sigma_data=sigma_data,
        mean=[0.0] * codec.channels,
        std=[1.0] * codec.channels,
        codec={"kind": "mel_pca", "path": "", "digest": codec.digest},
        text={"kind": "minilm", "path": "", "digest": text.digest, "dim": text.dim, "max_tokens": tokens},
    )


def commit_untrained(root: str, *, kind: str = "generator", artifact_id: str = "1" * 16) -> Artifact:
    """Commit an untrained model to a store."""
    card = make_card()
    torch.manual_seed(0)
    return commit_artifact(
        artifact_folder(open_folder(root), artifact_id),
        kind=kind,
        artifact_id=artifact_id,
        config_yaml="seed: 0\n",
        parents={"dataset": "0" * 16},
        files=serialize_network(card.build_network()),
        details={"model": card.to_dict()},
    )


def export_untrained(root: str, folder: Path, *, name: str, kind: str = "generator") -> Artifact:
    """Commit an untrained model, and export it as a model of the package into `folder`."""
    source = commit_untrained(root, kind=kind)
    return export_artifact(source.uri, folder, name=name)
