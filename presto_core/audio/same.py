"""Stable Audio 3's codec: an AutoencoderSAME of diffusers, loaded from a local folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from presto_core.audio.oobleck import OobleckCodec, compute_digest, load_autoencoder


class SameCodec(OobleckCodec):
    """`Codec` around a transformer autoencoder, whose encoder is deterministic.

    Its attention sees a band of neighbouring frames, so long audio is coded in parts like a convolution's. A mask of
    all frames squared limits them to fewer frames.

    Args:
        folder: written by `AutoencoderSAME.save_pretrained`.

    Raises:
        CodecError: diffusers is not installed or has no such class, or the folder contains no such model.
    """

    name = "same"
    chunk_frames = 128  # 12 s; the mask of twice as many has 75 MB per clip and head

    def __init__(self, folder: Path) -> None:
        self._model = load_autoencoder(folder, "AutoencoderSAME")
        config = self._model.config
        self.hop, self.sample_rate_hz = int(self._model.downsampling_ratio), int(config.sampling_rate)
        self.channels, self.audio_channels = int(config.latent_dim), int(config.audio_channels)
        self.digest = self.decoder_digest = compute_digest(folder)
        self.device = torch.device("cpu")
        self.margin_frames = count_margin_frames(
            config.encoder_strides, config.encoder_transformer_depths, window=int(config.sliding_window)
        )

    def _encode(self, audio: Tensor) -> Tensor:
        latents: Tensor = self._model.encode(audio).latents
        return latents


def count_margin_frames(strides: Sequence[int], depths: Sequence[int], *, window: int) -> int:
    """Return latent frames on each side that a sample depends on, rounded up.

    A layer sees `window` frames to each side: latent ones in the innermost stack, and of each further stack those that
    are so many times as fine as the strides inside of it make them.
    """
    reach, rate = 0.0, 1
    for stride, depth in zip(reversed(list(strides)), reversed(list(depths))):
        reach += depth * window / rate
        rate *= stride
    return math.ceil(reach)
