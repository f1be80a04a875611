"""The measures of a codec's round trip: known answers for equal, scaled, silent and short audio."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from presto_core.audio.codec import Codec
from presto_core.audio.load_codec import load_codec
from presto_core.audio.round_trip import RoundTrip, compute_band_levels_db, measure_round_trip, run_round_trip

RATE_HZ = 44100


def make_noise(seconds: float, channels: int = 1) -> Tensor:
    return 0.1 * torch.randn(channels, int(seconds * RATE_HZ), generator=torch.Generator().manual_seed(0))


def make_trip(original: Tensor, decoded: Tensor) -> RoundTrip:
    return RoundTrip(original, decoded, torch.zeros(1, 1))


def test_equal_audio_has_no_error():
    quality = measure_round_trip(make_trip(make_noise(1), make_noise(1)), rate_hz=RATE_HZ)
    assert (quality.mel_error_db, quality.snr_db, quality.loudness_change_lu) == (0, math.inf, 0)


@pytest.mark.parametrize("channels", [1, 2])
def test_half_the_level_is_six_decibels_in_every_measure(channels: int):
    noise = make_noise(1, channels)
    quality = measure_round_trip(make_trip(noise, noise / 2), rate_hz=RATE_HZ)
    six_db = 20 * math.log10(2)
    assert quality.mel_error_db == pytest.approx(six_db, abs=1e-3)
    assert quality.snr_db == pytest.approx(six_db, abs=1e-3)
    assert quality.loudness_change_lu == pytest.approx(-six_db, abs=1e-3)


def test_unrelated_audio_of_the_same_level_has_minus_three_decibels():
    noise = make_noise(2)
    assert measure_round_trip(make_trip(noise, noise.flip(1)), rate_hz=RATE_HZ).snr_db == pytest.approx(-3, abs=0.1)


def test_silence_has_no_ratio_and_no_loudness():
    silence = torch.zeros(1, RATE_HZ)
    quality = measure_round_trip(make_trip(silence, silence), rate_hz=RATE_HZ)
    assert (quality.mel_error_db, quality.snr_db, quality.loudness_change_lu) == (0, None, None)


def test_a_tone_is_loudest_in_its_band():
    tone = torch.sin(2 * math.pi * 440 * torch.arange(RATE_HZ) / RATE_HZ)
    low, high = (compute_band_levels_db(torch.sin(2 * math.pi * hz * torch.arange(RATE_HZ) / RATE_HZ), rate_hz=RATE_HZ)
                 .mean(0).argmax() for hz in (440, 4400))  # fmt: skip
    assert low < high
    assert compute_band_levels_db(tone, rate_hz=RATE_HZ).shape == (RATE_HZ // 512 + 1, 100)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("mel_pca")


@pytest.mark.parametrize("samples", [1, 100, 2047, 2048, 2049, 30_000])
def test_a_round_trip_has_the_length_of_the_original(codec: Codec, samples: int):
    trip = run_round_trip(codec, make_noise(1)[:, :samples])
    assert trip.decoded.shape == trip.original.shape == (1, samples)
    assert trip.latents.shape == (64, -(-samples // 2048))
    assert math.isfinite(measure_round_trip(trip, rate_hz=RATE_HZ).mel_error_db)
