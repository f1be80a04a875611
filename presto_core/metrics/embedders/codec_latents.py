"""Continuous latents of neural codecs as embeddings: EnCodec (Défossez et al. 2022) and DAC (Kumar et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_core.metrics.embedders.embedder import check_audio
from presto_core.metrics.embedders.model_folder import load_pretrained, open_model_folder


class EncodecEmbedder:
    """`Embedder`: the encoder's output before the quantiser, one mean per second; a last part of a second is dropped.

    The 48 kHz model is stereo: mono goes to both of its channels (as in fadtk, Gui et al. 2024), and each of its
    one-second chunks is scaled to unit level, as the model's own `encode` does.

    Args:
        source: folder or hub id of an `EncodecModel`, e.g. facebook/encodec_24khz.

    Raises:
        EmbedderError: the folder contains no such model.
    """

    kind = "encodec"
    patch_seconds = 1.0

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        from transformers import EncodecModel

        folder = open_model_folder(self.kind, source, ("encodec",))
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        self._model: Any = load_pretrained(folder, EncodecModel, device=device)
        config = self._model.config
        self.sample_rate_hz, self.dim = int(config.sampling_rate), int(config.hidden_size)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at the model's rate, N >= 1 s -> [B, seconds, dim]; see `Embedder.embed`."""
        check_audio(audio, self)
        whole, seconds = take_whole_seconds(audio, self.sample_rate_hz)
        channels = whole.to(self.device, torch.float32)[:, None].expand(-1, self._model.config.audio_channels, -1)
        chunks = channels.split(self._model.config.chunk_length or channels.shape[-1], dim=-1)
        return average_per_second(torch.cat([self._encode(chunk) for chunk in chunks], dim=-1), seconds)

    def _encode(self, chunk: Tensor) -> Tensor:
        """[B, channels, N] -> [B, dim, frames]."""
        if self._model.config.normalize:
            level = chunk.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt()
            chunk = chunk / (level + 1e-8)
        return self._model.encoder(chunk)


class DacEmbedder:
    """`Embedder`: the encoder's output before the quantiser, one mean per second; a last part of a second is dropped.

    Args:
        source: folder or hub id of a `DacModel`, e.g. descript/dac_44khz.

    Raises:
        EmbedderError: the folder contains no such model.
    """

    kind = "dac"
    patch_seconds = 1.0

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        from transformers import DacModel

        folder = open_model_folder(self.kind, source, ("dac",))
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        self._model: Any = load_pretrained(folder, DacModel, device=device)
        self.sample_rate_hz = int(self._model.config.sampling_rate)
        self.dim = int(self._model.config.hidden_size)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at the model's rate, N >= 1 s -> [B, seconds, dim]; see `Embedder.embed`."""
        check_audio(audio, self)
        whole, seconds = take_whole_seconds(audio, self.sample_rate_hz)
        return average_per_second(self._model.encoder(whole.to(self.device, torch.float32)[:, None]), seconds)


def take_whole_seconds(audio: Tensor, rate_hz: int) -> tuple[Tensor, int]:
    """Return clips [B, N] without a last part of a second, and the number of seconds."""
    seconds = audio.shape[1] // rate_hz
    return audio[:, : seconds * rate_hz], seconds


def average_per_second(latents: Tensor, seconds: int) -> Tensor:
    """Mean of the frames of each second: [B, D, T] -> [B, seconds, D]; frames per second need not be whole."""
    bounds = torch.linspace(0, latents.shape[-1], seconds + 1).round().long().tolist()
    means = [latents[..., start:end].mean(-1) for start, end in zip(bounds, bounds[1:])]
    return torch.stack(means, dim=1).float().cpu()
