"""Waveform <-> latents behind one protocol; ingest encodes through it, evaluate and generate decode through it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from presto_core.errors import UserError


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
