"""Latents -> STFT magnitudes: a closed-form linear map to log-mel, sharpened by a small ConvNeXt; Griffin-Lim follows.

The linear map alone (no blocks) is a complete decoder; the network adds what the mel scale blurs: partials and onsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.audio.codec import CodecError
from presto_core.audio.mel_frames import MelSettings
from presto_core.audio.tensor_file import TensorFile

POWER_EPSILON = 1e-6  # least power, before a division or logarithm; full scale is ~1e5
MAX_LOG_POWER = 15.0  # latents far from any music still give finite audio


@dataclass(frozen=True)
class DecoderSettings:
    """Shape of a decoder; part of its digest.

    Attributes:
        taps: latent frames that the linear map sees, odd.
        corrections: rounds that scale magnitudes until their mel power is the wanted one.
        iterations: Griffin-Lim rounds.
        width: channels of the network.
        slow_blocks: ConvNeXt blocks at the latent rate; fast_blocks: at the frame rate; both 0 = linear only.
    """

    taps: int = 5
    corrections: int = 4
    iterations: int = 4
    width: int = 0
    slow_blocks: int = 0
    fast_blocks: int = 0


def spread_matrix(filters: Tensor) -> Tensor:
    """Linear interpolation from the mel bands' centres to the bins: [bins, mels] -> [mels, bins], columns sum to 1."""
    bins = torch.arange(len(filters), dtype=filters.dtype)
    centres = (filters * bins[:, None]).sum(0) / filters.sum(0)
    upper = torch.searchsorted(centres, bins).clamp(1, len(centres) - 1)
    share = ((bins - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    spread = torch.zeros(len(centres), len(bins))
    columns = torch.arange(len(bins))
    spread[upper - 1, columns] = 1 - share
    spread[upper, columns] = share
    return spread


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise MLP, added to the input (Liu et al. 2022); x: [B, T, D]."""

    def __init__(self, width: int, *, kernel: int, init_gain: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.gain = nn.Parameter(torch.full((width,), init_gain))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.gain * self.contract(F.gelu(self.expand(self.norm(h))))


class Refiner(nn.Module):
    """Latents [B, C, T] -> corrections [B, frames_per_latent * T, outputs] from `slow_blocks` before the up-sampling
    to the frame rate, `fast_blocks` after it."""

    def __init__(self, mel: MelSettings, settings: DecoderSettings, *, outputs: int) -> None:
        super().__init__()
        width, frames = settings.width, mel.frames_per_latent
        gain = 1 / (settings.slow_blocks + settings.fast_blocks)
        self.frames = frames
        self.enter = nn.Conv1d(mel.channels, width, 3, padding=1)
        self.slow = nn.ModuleList(ConvNeXtBlock(width, kernel=5, init_gain=gain) for _ in range(settings.slow_blocks))
        self.rise = nn.Linear(width, frames * width)
        self.skip = nn.Conv1d(mel.channels, frames * width, 3, padding=1)
        self.fast = nn.ModuleList(ConvNeXtBlock(width, kernel=7, init_gain=gain) for _ in range(settings.fast_blocks))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, outputs)
        nn.init.normal_(self.leave.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.leave.bias)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.enter(latents).transpose(1, 2)
        for block in self.slow:
            h = block(h)
        h = self.rise(h) + self.skip(latents).transpose(1, 2)
        h = h.reshape(len(h), h.shape[1] * self.frames, -1)
        for block in self.fast:
            h = block(h)
        return self.leave(self.norm(h))


class MagnitudeDecoder(nn.Module):
    """Latents [B, channels, T] -> STFT magnitudes [B, frames_per_latent * T, bins].

    Mel power comes from a linear map over `taps` latent frames (plus the network's change to it), is spread over the
    bins by interpolation, sharpened by the network, and corrected so that its own mel power is the wanted one.
    """

    def __init__(self, mel: MelSettings, settings: DecoderSettings) -> None:
        super().__init__()
        self.mel, self.settings = mel, settings
        self.linear = nn.Conv1d(mel.channels, mel.block_size, settings.taps)
        self.refiner = Refiner(mel, settings, outputs=mel.mels + mel.bins) if settings.width else None
        filters = mel.filters()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("spread", spread_matrix(filters), persistent=False)
        self.filters: Tensor
        self.spread: Tensor

    @staticmethod
    def from_file(weights: TensorFile, mel: MelSettings) -> MagnitudeDecoder:
        """The decoder whose weights a file holds; raises CodecError when they do not fit its settings."""
        try:
            decoder = MagnitudeDecoder(mel, DecoderSettings(**weights.settings))
            decoder.load_state_dict({name: tensor.float() for name, tensor in weights.tensors.items()})
        except (TypeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise CodecError(f"not the weights of a mel_pca codec's decoder: {said}") from None
        return decoder

    def log_mel(self, latents: Tensor) -> Tensor:
        """The linear map alone: ln(mel power + floor), [B, frames_per_latent * T, mels]."""
        edge = self.settings.taps // 2
        blocks = self.linear(F.pad(latents, (edge, edge), mode="replicate")).transpose(1, 2)
        return blocks.reshape(len(latents), -1, self.mel.mels)

    def forward(self, latents: Tensor) -> Tensor:
        return self.power(latents).sqrt()

    def power(self, latents: Tensor) -> Tensor:
        """Squared magnitudes; what a loss differentiates, since a root has no slope at the silent edge bins."""
        log_mel, sharpen = self.log_mel(latents), None
        if self.refiner is not None:
            change, sharpen = self.refiner(latents).split([self.mel.mels, self.mel.bins], dim=2)
            log_mel = log_mel + change
        wanted = (log_mel.clamp_max(MAX_LOG_POWER).exp() - self.mel.power_floor).clamp_min(POWER_EPSILON)
        log_power = (wanted / self.filters.sum(0)).log() @ self.spread
        if sharpen is not None:
            log_power = log_power + sharpen
        return self._corrected(log_power.clamp_max(MAX_LOG_POWER).exp(), wanted)

    def _corrected(self, power: Tensor, wanted: Tensor) -> Tensor:
        """Multiplicative updates of non-negative least squares towards `power @ filters = wanted` (Lee & Seung)."""
        weight = self.filters.sum(1).clamp_min(1e-8)
        for _ in range(self.settings.corrections):
            ratio = wanted / (power @ self.filters + POWER_EPSILON)
            power = power * (ratio @ self.filters.T) / weight
        return power
