"""Waveform <-> latents behind one protocol; ingest encodes through it, evaluate and generate decode through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from presto_core.config.errors import UserError


class CodecError(UserError):
    """A codec that cannot be loaded or fed; the message names what is wrong and the mend."""


class Codec(Protocol):
    """Turns audio into latents at `sample_rate_hz / hop` frames a second, and back.

    Attributes:
        name: what a data-set manifest calls it.
        hop: samples per latent frame.
        channels: of the latents.
        audio_channels: of the audio; 1 is mono.
        digest: sha256 over encoder weights and settings: equal digests give equal latents.
        decoder_digest: sha256 over decoder weights and settings: equal digests give equal audio.
    """

    name: str
    sample_rate_hz: int
    hop: int
    channels: int
    audio_channels: int
    digest: str
    decoder_digest: str

    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, audio_channels, N] -> latents [B, channels, floor(N / hop)] float32 on the CPU."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, channels, T] -> audio [B, audio_channels, T * hop] float32 on the CPU, deterministic."""
        ...


def load_codec(kind: str, *, path: str | None = None, device: torch.device | str = "cpu") -> Codec:
    """The codec a `codec` section names.

    Args:
        kind: `mel_pca` (shipped weights, or a folder that `presto codec fit` made) or `oobleck`.
        path: local folder of the weights; None for those shipped with the package.
        device: where `oobleck` computes. Audio and latents may come from anywhere and return on the CPU, as those of
            `mel_pca`, which computes there only.

    Raises:
        CodecError: no such kind, its weights are missing or damaged, or there is no such device.
    """
    if kind not in CODECS:
        raise CodecError(f"codec.kind={kind} is not known; choose one of {', '.join(sorted(CODECS))}")
    return CODECS[kind](path, device)


def check_audio(audio: Tensor, *, audio_channels: int, hop: int) -> None:
    """Refuse audio that is not [B, audio_channels, N] with at least one latent frame; raises CodecError."""
    if audio.ndim != 3 or audio.shape[1] != audio_channels or audio.shape[2] < hop:
        shape = list(audio.shape)
        raise CodecError(f"audio of shape {shape} given to a codec that wants [B, {audio_channels}, N] with N >= {hop}")


def check_latents(latents: Tensor, *, channels: int) -> None:
    """Refuse latents that are not [B, channels, T] with T >= 1; raises CodecError."""
    if latents.ndim != 3 or latents.shape[1] != channels or latents.shape[2] < 1:
        shape = list(latents.shape)
        raise CodecError(f"latents of shape {shape} given to a codec that wants [B, {channels}, T] with T >= 1")


def _mel_pca(path: str | None, device: torch.device | str) -> Codec:
    from presto_core.audio.mel_pca import MelPcaCodec

    return MelPcaCodec.load(path)


def _oobleck(path: str | None, device: torch.device | str) -> Codec:
    from presto_core.audio.oobleck import OobleckCodec

    return OobleckCodec.load(path, device=device)


CODECS: dict[str, Callable[[str | None, torch.device | str], Codec]] = {"mel_pca": _mel_pca, "oobleck": _oobleck}
