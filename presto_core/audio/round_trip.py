"""What a codec keeps of music: log-mel error, signal-to-noise ratio and loudness of encoded and decoded audio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from presto_core.audio.codec import Codec
from presto_core.audio.loudness import measure_level
from presto_core.audio.mel_codec.griffin_lim import spectrum

N_FFT, HOP, BANDS = 2048, 512, 100
LOWEST_HZ, HIGHEST_HZ = 20.0, 20000.0
POWER_FLOOR = 1e-7  # what is quieter than -70 dB counts as that


@dataclass(frozen=True)
class RoundTrip:
    """Audio and what a codec makes of it, both [A, N] float32, and its latents [C, T]."""

    original: Tensor
    decoded: Tensor
    latents: Tensor


@dataclass(frozen=True)
class RoundTripQuality:
    """How far decoded audio is from the original.

    Attributes:
        mel_error_db: mean absolute difference of the levels of 100 mel bands, as in the table of docs/codec.md.
        snr_db: of the waveform; None for digital silence, inf for equal audio. A codec that does not keep the phase
            has about -3 dB, as unrelated audio of the same level.
        loudness_lufs, decoded_loudness_lufs: integrated; -inf for silence and clips shorter than 400 ms.
    """

    mel_error_db: float
    snr_db: float | None
    loudness_lufs: float
    decoded_loudness_lufs: float

    @property
    def loudness_change_lu(self) -> float | None:
        change = self.decoded_loudness_lufs - self.loudness_lufs
        return change if math.isfinite(change) else None


@torch.inference_mode()
def run_round_trip(codec: Codec, audio: Tensor) -> RoundTrip:
    """Encode and decode audio [A, N] of any length: a part of a latent frame is filled up with silence, and cut again.

    Raises:
        CodecError: the number of channels is not the codec's.
    """
    samples = audio.shape[-1]
    frames = max(1, -(-samples // codec.hop))
    padded = torch.nn.functional.pad(audio, (0, frames * codec.hop - samples))
    latents = codec.encode(padded[None])
    decoded = codec.decode(latents)[0, :, :samples]
    return RoundTrip(audio, decoded, latents[0])


def measure_round_trip(trip: RoundTrip, *, rate_hz: int) -> RoundTripQuality:
    """Compare both sides, the mix of their channels for mel bands."""
    sides = (trip.original.mean(0), trip.decoded.mean(0))
    levels = [compute_band_levels_db(side, rate_hz=rate_hz) for side in sides]
    loudness, decoded_loudness = (
        measure_level(side.numpy(), rate_hz=rate_hz)[0] for side in (trip.original, trip.decoded)
    )
    return RoundTripQuality(
        float((levels[0] - levels[1]).abs().mean()), _compute_snr_db(trip), loudness, decoded_loudness
    )


def compute_band_levels_db(
    clip: Tensor, *, rate_hz: int, n_fft: int = N_FFT, hop: int = HOP, bands: int = BANDS
) -> Tensor:
    """Mel band levels [frames, bands] in dB of a clip [N]."""
    highest_hz = min(HIGHEST_HZ, rate_hz / 2)
    filters = melscale_fbanks(n_fft // 2 + 1, LOWEST_HZ, highest_hz, bands, rate_hz, norm="slaney", mel_scale="slaney")
    padded = torch.nn.functional.pad(clip, (0, max(0, n_fft - len(clip))))
    power = spectrum(padded, n_fft=n_fft, hop=hop).abs().square() @ filters
    return 10 * power.clamp_min(POWER_FLOOR).log10()


def _compute_snr_db(trip: RoundTrip) -> float | None:
    signal = float(trip.original.double().square().sum())
    noise = float((trip.original - trip.decoded).double().square().sum())
    if not signal:
        return None
    return 10 * math.log10(signal / noise) if noise else math.inf
