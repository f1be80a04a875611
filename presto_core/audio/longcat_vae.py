"""LongCat-Audio's codec: a LongCatAudioDiTVae of diffusers, loaded from a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_core.audio.codec import CodecError
from presto_core.audio.oobleck import OobleckCodec, compute_digest, count_margin_frames, load_autoencoder


class LongCatCodec(OobleckCodec):
    """`Codec` around an autoencoder whose decoder has the layout of Oobleck's; latents are the mode of the posterior.

    Shortcuts around its blocks repeat and average values within a frame, so parts of long audio need no wider margin.

    Args:
        folder: written by `LongCatAudioDiTVae.save_pretrained`.

    Raises:
        CodecError: diffusers is not installed or has no such class, the folder contains no such model, or its strides
            do not fit its hop.
    """

    name = "longcat"

    def __init__(self, folder: Path) -> None:
        self._model = load_autoencoder(folder, "LongCatAudioDiTVae")
        config = self._model.config
        strides = list_strides(config)
        _check_strides(folder, strides, hop=int(config.downsampling_ratio))
        self.hop, self.sample_rate_hz = int(config.downsampling_ratio), int(config.sample_rate)
        self.channels, self.audio_channels = int(config.latent_dim), int(config.in_channels)
        self.digest = self.decoder_digest = compute_digest(folder)
        self.device = torch.device("cpu")
        self.margin_frames = count_margin_frames(strides)

    def _encode(self, audio: Tensor) -> Tensor:
        latents: Tensor = self._model.encode(audio, sample_posterior=False).latents
        return latents


def list_strides(settings: Mapping[str, Any]) -> list[int]:
    """Return the strides of the autoencoder: one for each multiple of channels, of which the last one is repeated."""
    strides, count = list(settings["strides"] or [2]), len(settings["c_mults"] or [1, 2, 4, 8, 16])
    return (strides + strides[-1:] * count)[:count]


def _check_strides(folder: Path, strides: list[int], *, hop: int) -> None:
    """Check that a frame has as many samples as the settings say, and that none are lost; raises CodecError."""
    if odd := [stride for stride in strides if stride % 2]:
        raise CodecError(f"codec in {folder} loses samples at strides {odd}; use a model with even ones")
    if prod(strides) != hop:
        raise CodecError(
            f"codec in {folder} has downsampling_ratio={hop} and strides {strides}, whose product is {prod(strides)}; "
            "download it again"
        )
