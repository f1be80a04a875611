"""The codec protocol: waveform to latents for ingest, latents to waveform for evaluate and generate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from presto_core.errors import UserError


class CodecError(UserError):
    """A codec cannot be loaded or its input has the wrong shape; the message names the problem and the fix."""


class Codec(Protocol):
    """Converts audio to latents at `sample_rate_hz / hop` frames per second, and back.

    Attributes:
        name: the codec's name in a dataset manifest.
        hop: samples per latent frame.
        channels: latent channels.
        audio_channels: audio channels; 1 is mono.
        margin_frames: latent frames beside those of a part of the audio that encoding hears the part in.
        digest: sha256 over encoder weights and settings: equal digests give equal latents.
        decoder_digest: sha256 over decoder weights and settings: equal digests give equal audio.
        device: where it computes; inputs may be on any device, results are on this one.
    """

    name: str
    sample_rate_hz: int
    hop: int
    channels: int
    audio_channels: int
    margin_frames: int
    digest: str
    decoder_digest: str
    device: torch.device

    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, audio_channels, N] to latents [B, channels, floor(N / hop)] float32 on `device`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, channels, T] to audio [B, audio_channels, T * hop] float32 on `device`; deterministic.

        Long latents are decoded in chunks, so memory does not grow with length but for the audio itself.
        """
        ...

    def decode_in_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latents [1, channels, T] to consecutive parts of their audio, [1, audio_channels, n] each.

        The first part is short and the next ones grow: the start can be heard while the rest is decoded. Equal to
        `decode` in bits, or within rounding where that depends on the size of a part.
        """
        ...


def check_audio(audio: Tensor, *, audio_channels: int, hop: int) -> None:
    """Check that audio is [B, audio_channels, N] with at least one latent frame; raise CodecError otherwise."""
    if audio.ndim != 3 or audio.shape[1] != audio_channels or audio.shape[2] < hop:
        shape = list(audio.shape)
        raise CodecError(f"codec cannot encode audio of shape {shape}; pass [B, {audio_channels}, N] with N >= {hop}")


def check_latents(latents: Tensor, *, channels: int) -> None:
    """Check that latents are [B, channels, T] with T >= 1; raise CodecError otherwise."""
    if latents.ndim != 3 or latents.shape[1] != channels or latents.shape[2] < 1:
        shape = list(latents.shape)
        raise CodecError(f"codec cannot decode latents of shape {shape}; pass [B, {channels}, T] with T >= 1")


def list_parts(frames: int, *, first: int, longest: int) -> list[tuple[int, int]]:
    """Return parts (first frame, the one after the last): each twice as long as the one before, up to `longest`."""
    parts, start, length = [], 0, first
    while start < frames:
        parts.append((start, min(start + length, frames)))
        start, length = start + length, min(2 * length, longest)
    return parts
