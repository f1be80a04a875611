"""What an embedding of audio offers to evaluation, and how clips are made ready for one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torchaudio.functional as TAF
from torch import Tensor

from presto_core.errors import UserError


class EmbedderError(UserError):
    """An embedder cannot be loaded or cannot embed this audio; the message names the thing, its value and the fix."""


class Embedder(Protocol):
    """Turns audio into one vector per patch of time.

    Attributes:
        kind: its key in the table of embedders.
        name: what reports call it; two embedders of one report have different names.
        sample_rate_hz: of the audio that `embed` takes.
        digest: sha256 of its weights and settings as loaded; equal digests give equal embeddings.
        dim: length of a vector.
        patch_seconds: shortest clip that gives a vector.
    """

    kind: str
    name: str
    sample_rate_hz: int
    digest: str
    dim: int
    patch_seconds: float

    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] mono at `sample_rate_hz`, on any device -> [B, patches, dim] float32 on the CPU.

        Raises:
            ValueError: the audio is not [B, N] with B >= 1.
            EmbedderError: it is shorter than `patch_seconds`, or holds values that are not finite.
        """
        ...


@runtime_checkable
class TextAudioEmbedder(Embedder, Protocol):
    """An embedder that embeds text into the space of audio, so a cosine says how well a clip fits its caption."""

    def embed_text(self, captions: list[str]) -> Tensor:
        """Captions -> [B, dim] unit vectors, float32 on the CPU.

        Raises:
            EmbedderError: a caption is longer than the text encoder reads.
        """
        ...


def mix_to_mono(audio: Tensor) -> Tensor:
    """Return the mean of the channels: audio [B, A, N] -> [B, N].

    Every embedding of the table was trained on such a mean (its paper or its reference code: docs/embedders.md).
    """
    if audio.ndim != 3 or not audio.shape[1]:
        raise ValueError(f"audio of shape {list(audio.shape)}: clips are [B, channels, N]")
    return audio.mean(dim=1)


def prepare_audio(audio: Tensor, rate_hz: int, embedder: Embedder) -> Tensor:
    """Mix and resample clips for an embedder: audio [B, A, N] at `rate_hz` -> [B, N'] at the embedder's rate.

    Raises:
        ValueError: the audio is not [B, A, N].
        EmbedderError: it holds values that are not finite.
    """
    mono = mix_to_mono(audio)
    check_finite(mono)
    return TAF.resample(mono.float(), rate_hz, embedder.sample_rate_hz)


def check_audio(audio: Tensor, embedder: Embedder, *, shortest: int = 0) -> None:
    """Check what an embedder is about to embed.

    Args:
        shortest: fewest samples per clip; 0 takes the embedder's `patch_seconds`.

    Raises:
        ValueError, EmbedderError: as `Embedder.embed`.
    """
    if audio.ndim != 2 or not len(audio):
        raise ValueError(f"audio of shape {list(audio.shape)}: the embedding takes mono clips [B, N], B >= 1")
    rate_hz = embedder.sample_rate_hz
    if audio.shape[1] < (shortest or round(embedder.patch_seconds * rate_hz)):
        raise EmbedderError(
            f"{audio.shape[1] / rate_hz:.2f} s of audio is shorter than the {embedder.patch_seconds:g} s patch of "
            f"embedder {embedder.name}; use longer clips"
        )
    check_finite(audio)


def check_finite(audio: Tensor) -> None:
    """Check that clips [B, N] hold finite values only; raises EmbedderError."""
    bad = ~torch.isfinite(audio)
    if count := int(bad.sum()):
        raise EmbedderError(
            f"{count} of {audio.numel()} audio values in {int(bad.any(1).sum())} of {len(audio)} clips are NaN or "
            "infinite and cannot be embedded; the model or file that made them is broken"
        )
