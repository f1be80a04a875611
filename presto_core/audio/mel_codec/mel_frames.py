"""Log-mel frames grouped into one block per latent frame: what the embedded codec encodes and decodes to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from presto_core.audio.mel_codec.griffin_lim import spectrum


@dataclass(frozen=True)
class MelSettings:
    """Settings of the encoder's input; part of the codec's digest.

    Attributes:
        frame_hop: samples between spectra; `frames_per_latent` of them make one latent frame.
        power_floor: added to mel power before the logarithm, so that near-silence maps to one value; full scale ~1e5.
    """

    sample_rate_hz: int = 44100
    n_fft: int = 2048
    frame_hop: int = 512
    mels: int = 160
    power_floor: float = 1e-4
    frames_per_latent: int = 4
    channels: int = 64

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.frame_hop * self.frames_per_latent

    @property
    def bins(self) -> int:
        """Frequency bins per spectrum."""
        return self.n_fft // 2 + 1

    @property
    def block_size(self) -> int:
        """Log-mel values per latent frame."""
        return self.frames_per_latent * self.mels

    def make_filters(self) -> Tensor:
        """Return Slaney-scale triangular filters from 0 Hz to Nyquist, peak 1: [bins, mels]."""
        nyquist = self.sample_rate_hz / 2
        return melscale_fbanks(self.bins, 0.0, nyquist, self.mels, self.sample_rate_hz, mel_scale="slaney")


def power_frames(samples: Tensor, settings: MelSettings) -> Tensor:
    """Power spectra [..., floor(N / hop) * frames_per_latent, bins] of samples [..., N], centred every `frame_hop`."""
    frames = samples.shape[-1] // settings.hop * settings.frames_per_latent
    spectra = spectrum(samples, n_fft=settings.n_fft, hop=settings.frame_hop)[..., :frames, :]
    return torch.add(*torch.view_as_real(spectra).square().unbind(-1))  # five times faster than sum(-1)


def log_mel(power: Tensor, filters: Tensor, *, power_floor: float) -> Tensor:
    """Convert power spectra [..., bins] to ln(mel power + floor) [..., mels]."""
    return (power @ filters + power_floor).log()


def log_mel_blocks(samples: Tensor, settings: MelSettings, filters: Tensor) -> Tensor:
    """Convert samples [..., N] to blocks [..., floor(N / hop), block_size], each the frames of one latent frame."""
    frames = log_mel(power_frames(samples, settings), filters, power_floor=settings.power_floor)
    return frames.reshape(*frames.shape[:-2], -1, settings.block_size)
