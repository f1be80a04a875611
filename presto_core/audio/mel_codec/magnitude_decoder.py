"""Predict STFT magnitudes from latents in closed form: a linear map to mel power, interpolated over the bins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.audio.codec import CodecError
from presto_core.audio.mel_codec.banded_matrix import BandedMatrix, TallBandedMatrix
from presto_core.audio.mel_codec.griffin_lim import iter_row_blocks
from presto_core.audio.mel_codec.mel_frames import MelSettings
from presto_core.audio.mel_codec.tensor_file import TensorFile

POWER_EPSILON = 1e-6  # minimum power before a division or logarithm; full scale is ~1e5
MAX_LOG_POWER = 15.0  # latents far outside the data still give finite audio


@dataclass(frozen=True)
class DecoderSettings:
    """Settings of the decoder; part of its digest.

    Attributes:
        taps: latent frames that the linear map sees, odd.
        corrections: updates that match the mel power of the magnitudes to the target.
        iterations: Griffin-Lim iterations.
    """

    taps: int = 5
    corrections: int = 4
    iterations: int = 4


def spread_matrix(filters: Tensor) -> Tensor:
    """Return the linear interpolation from mel band centres to bins: [bins, mels] -> [mels, bins], columns sum to 1."""
    bins = torch.arange(len(filters), dtype=filters.dtype)
    centers = (filters * bins[:, None]).sum(0) / filters.sum(0)
    upper = torch.searchsorted(centers, bins).clamp(1, len(centers) - 1)
    share = ((bins - centers[upper - 1]) / (centers[upper] - centers[upper - 1])).clamp(0, 1)
    spread = torch.zeros(len(centers), len(bins))
    columns = torch.arange(len(bins))
    spread[upper - 1, columns] = 1 - share
    spread[upper, columns] = share
    return spread


class MagnitudeDecoder:
    """Predicts STFT magnitudes [..., frames_per_latent * T, bins] from latents [..., channels, T].

    A linear map over `taps` latent frames gives log-mel; its power is interpolated over the bins and corrected until
    it has that mel power.

    Args:
        weights: `linear.weight` [block_size, channels, taps] and `linear.bias` [block_size].

    Raises:
        CodecError: settings or shapes do not belong to this codec.
    """

    def __init__(self, weights: TensorFile, mel: MelSettings) -> None:
        try:
            self.settings = DecoderSettings(**weights.settings)
            self.weight, self.bias = weights.tensors["linear.weight"], weights.tensors["linear.bias"]
        except (TypeError, KeyError) as error:
            raise CodecError(f"the decoder weights do not belong to a mel_pca codec: {error}") from None
        expected = [mel.block_size, mel.channels, self.settings.taps]
        if list(self.weight.shape) != expected:
            raise CodecError(f"mel_pca decoder has weights {list(self.weight.shape)} but settings for {expected}")
        self.mel, self.filters, self.digest = mel, mel.make_filters(), weights.digest
        self.spread = BandedMatrix(spread_matrix(self.filters))
        self.from_mel, self.to_mel = BandedMatrix(self.filters.T), TallBandedMatrix(self.filters)

    def to(self, device: torch.device | str) -> MagnitudeDecoder:
        self.weight, self.bias, self.filters = (t.to(device) for t in (self.weight, self.bias, self.filters))
        self.spread, self.from_mel = self.spread.to(device), self.from_mel.to(device)
        self.to_mel = self.to_mel.to(device)
        return self

    def predict_log_mel(self, latents: Tensor) -> Tensor:
        """Apply the linear map: ln(mel power + floor), [..., frames_per_latent * T, mels]."""
        edge = self.settings.taps // 2
        batched = latents if latents.ndim == 3 else latents[None]
        padded = F.pad(batched, (edge, edge), mode="replicate")
        frames = F.conv1d(padded, self.weight, self.bias).transpose(1, 2).reshape(len(batched), -1, self.mel.mels)
        return frames if latents.ndim == 3 else frames[0]

    def predict_magnitude(self, latents: Tensor) -> Tensor:
        """Predict magnitudes: [..., channels, T] -> [..., frames_per_latent * T, bins]; finite if latents are."""
        return self.invert_log_mel(self.predict_log_mel(latents))

    def invert_log_mel(self, log_mel: Tensor, *, repeat_last: bool = False) -> Tensor:
        """Invert ln(mel power + floor): [..., frames, mels] -> magnitudes [..., frames, bins].

        Args:
            repeat_last: repeat the last frame, for one more.
        """
        frames = log_mel.shape[-2]
        magnitude = log_mel.new_empty(*log_mel.shape[:-2], frames + repeat_last, self.mel.bins)
        for rows in iter_row_blocks(log_mel):
            power = self._invert_block(log_mel[..., rows, :].clamp_max(MAX_LOG_POWER))
            torch.sqrt(power, out=magnitude[..., rows, :])
        if repeat_last:
            magnitude[..., -1, :] = magnitude[..., -2, :]
        return magnitude

    def _invert_block(self, log_mel: Tensor) -> Tensor:
        """Spread mel power over the bins: [..., frames, mels] -> power [..., frames, bins]."""
        target = (log_mel.exp() - self.mel.power_floor).clamp_min_(POWER_EPSILON)
        log_power = self.spread.apply_to((target / self.filters.sum(0)).log_())
        return self._match_mel_power(log_power.clamp_max_(MAX_LOG_POWER).exp_(), target)

    def _match_mel_power(self, power: Tensor, target: Tensor) -> Tensor:
        """Apply multiplicative updates towards `power @ filters = target` with power >= 0 (Lee & Seung 2001)."""
        weight = self.filters.sum(1).clamp_min(1e-8)
        for _ in range(self.settings.corrections):
            ratio = target / self.to_mel.apply_to(power).add_(POWER_EPSILON)
            power = power.mul_(self.from_mel.apply_to(ratio)).div_(weight)
        return power
