"""Loudness: known answers of the standard, torchaudio as reference, gates, and independence of block sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchaudio
from scipy.signal import sosfreqz

from presto_core.audio.loudness import (
    LOUDEST_TARGET_LUFS,
    QUIETEST_TARGET_LUFS,
    choose_target,
    gain,
    integrated_loudness,
    k_weighting,
    match_loudness,
    measure_level,
)

RATE_HZ = 48000


def sine(hz: float, *, level_db: float = 0.0, seconds: float = 5.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """[N, 1] with a peak of `level_db` dBFS."""
    wave = np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)
    return (10 ** (level_db / 20) * wave[:, None]).astype(np.float32)


def music(*, channels: int, rate_hz: int, seconds: float = 12.0, seed: int = 0) -> np.ndarray:
    """Low-passed noise that swells and falls silent, so that all gates are active."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((int(seconds * rate_hz), channels))
    dark = np.cumsum(white - 0.02 * np.cumsum(white, axis=0).clip(-50, 50), axis=0)
    time = np.linspace(0, 1, len(white))[:, None]
    swell = np.where(time < 0.7, 10 ** (3 * np.sin(9 * time) - 3), 0)
    return (0.3 * dark / np.abs(dark).max() * swell + 0.05 * white * swell).astype(np.float32)


def measure_loudness(samples: np.ndarray, *, rate_hz: int = RATE_HZ, block: int = 2**18) -> float:
    def blocks() -> Iterator[np.ndarray]:
        for at in range(0, len(samples), block):
            yield samples[at : at + block]

    return integrated_loudness(blocks(), sample_rate_hz=rate_hz)


# --- known answers


@pytest.mark.parametrize(
    ("rate_hz", "within"), [(16000, 0.1), (22050, 0.1), (32000, 0.02), (44100, 0.01), (48000, 0.01), (192_000, 0.01)]
)
def test_a_full_scale_sine_of_997_hz_is_3_01_lufs_below(rate_hz: int, within: float) -> None:
    """Below 32 kHz the bilinear transform narrows the skirt of the shelf, which costs up to 0.1 dB."""
    assert measure_loudness(sine(997.0, rate_hz=rate_hz), rate_hz=rate_hz) == pytest.approx(-3.01, abs=within)


def test_the_same_sine_on_two_channels_is_3_db_louder() -> None:
    one = sine(997.0, level_db=-20)
    assert measure_loudness(one.repeat(2, axis=1)) - measure_loudness(one) == pytest.approx(
        10 * math.log10(2), abs=1e-6
    )
    assert measure_loudness(np.concatenate([one, 0 * one], axis=1)) == pytest.approx(measure_loudness(one), abs=1e-9)


def test_the_filter_at_48_khz_is_the_standards_table() -> None:
    """ITU-R BS.1770-4, annex 1, tables 1 and 2."""
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585]
    high_pass = [1.0, -2.0, 1.0, 1, -1.99004745483398, 0.99007225036621]
    np.testing.assert_allclose(k_weighting(48000), [shelf, high_pass], atol=1e-9)


@pytest.mark.parametrize("rate_hz", [44100, 32000, 96000])
def test_the_filter_is_the_same_curve_at_every_rate(rate_hz: int) -> None:
    hz = np.geomspace(20, 4000, 50)
    designed, tabled = (np.abs(sosfreqz(k_weighting(rate), worN=hz, fs=rate)[1]) for rate in (rate_hz, 48000))
    np.testing.assert_allclose(20 * np.log10(designed / tabled), 0, atol=0.03)


def test_silence_between_tones_is_gated_out() -> None:
    """EBU Tech 3341, case 3, with one channel: the quiet ends are more than 10 LU below the middle."""
    parts = [sine(1000, level_db=-36, seconds=10), sine(1000, level_db=-23, seconds=60), sine(1000, level_db=-36)]
    alone = measure_loudness(parts[1])
    assert alone == pytest.approx(-26.0, abs=0.1)
    assert measure_loudness(np.concatenate(parts)) == pytest.approx(alone, abs=0.03)
    quiet = np.concatenate([sine(1000, level_db=-80, seconds=30), parts[1]])
    assert measure_loudness(quiet) == pytest.approx(alone, abs=0.03)
    assert (
        measure_loudness(np.concatenate([sine(1000, level_db=-30, seconds=60), parts[1]])) < alone - 1
    )  # within the gate


# --- an independent reference


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [22050, 44100, 48000])
@pytest.mark.parametrize("seed", [0, 1])
def test_loudness_is_torchaudios(channels: int, rate_hz: int, seed: int) -> None:
    samples = music(channels=channels, rate_hz=rate_hz, seed=seed)
    reference = torchaudio.functional.loudness(torch.from_numpy(samples.T.copy()), rate_hz)
    assert measure_loudness(samples, rate_hz=rate_hz) == pytest.approx(float(reference), abs=0.05)


# --- streaming


@pytest.mark.parametrize("block", [1, 997, 4800, 19200, 10**6])
@pytest.mark.parametrize("rate_hz", [11025, 4000])
def test_blocks_do_not_matter(block: int, rate_hz: int) -> None:
    samples = music(channels=2, rate_hz=rate_hz, seconds=1)
    assert measure_loudness(samples, rate_hz=rate_hz, block=block) == pytest.approx(
        measure_loudness(samples, rate_hz=rate_hz), abs=1e-9
    )


def test_silence_and_less_than_a_block_have_no_loudness() -> None:
    assert measure_loudness(np.zeros((RATE_HZ, 2), np.float32)) == -math.inf
    assert measure_loudness(np.zeros((0, 1), np.float32)) == -math.inf
    assert integrated_loudness([], sample_rate_hz=RATE_HZ) == -math.inf
    assert measure_loudness(sine(997.0, seconds=0.399)) == -math.inf
    assert measure_loudness(sine(997.0, seconds=0.4)) == pytest.approx(-3.01, abs=0.1)
    assert measure_loudness(sine(997.0, level_db=-75)) == -math.inf


def test_a_rate_that_cannot_carry_the_shelf_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample_rate_hz=2000 .*4000"):
        integrated_loudness([np.zeros((9, 1), np.float32)], sample_rate_hz=2000)


# --- gain


@pytest.mark.parametrize("target_lufs", [-14.0, -23.0])
def test_gain_brings_music_to_the_target(target_lufs: float) -> None:
    samples = music(channels=2, rate_hz=RATE_HZ)
    factor = gain(measure_loudness(samples), target_lufs=target_lufs)
    assert measure_loudness((factor * samples).astype(np.float32)) == pytest.approx(target_lufs, abs=1e-3)


def test_gain_leaves_silence_as_it_is_and_no_peak_above_one() -> None:
    assert gain(-math.inf, target_lufs=-14) == 1.0
    assert gain(-20, target_lufs=-14, peak=0.0) == pytest.approx(10**0.3)
    assert gain(-20, target_lufs=-14, peak=0.8) == pytest.approx(1 / 0.8)
    assert gain(-20, target_lufs=-14, peak=0.1) == pytest.approx(10**0.3)
    assert gain(-10, target_lufs=-14, peak=0.9) == pytest.approx(10**-0.2)


# --- equal loudness


def make_spike(*, seconds: float = 3.0) -> np.ndarray:
    """Return [1, N]: a soft tone with one loud sample, which leaves little room for gain."""
    clip = sine(997.0, level_db=-50, seconds=seconds).T.copy()
    clip[0, RATE_HZ] = 0.9
    return clip


@pytest.mark.parametrize("channels", [1, 2])
def test_matched_clips_have_the_target_loudness_and_the_gain_that_is_stated(channels: int) -> None:
    clip = music(channels=channels, rate_hz=RATE_HZ).T
    match = match_loudness(clip, rate_hz=RATE_HZ, target_lufs=-28.0)
    assert not match.limited
    assert match.audio.dtype == np.float32
    assert measure_loudness(match.audio.T) == pytest.approx(-28.0, abs=1e-3)
    assert match.loudness_lufs + match.gain_db == pytest.approx(-28.0, abs=1e-9)
    np.testing.assert_allclose(match.audio, 10 ** (match.gain_db / 20) * clip, rtol=1e-6)


def test_a_clip_that_would_exceed_the_ceiling_is_quieter_and_marked_but_never_clipped() -> None:
    clip = make_spike()
    match = match_loudness(clip, rate_hz=RATE_HZ, target_lufs=-20.0)
    assert match.limited
    assert np.abs(match.audio).max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)
    assert measure_loudness(match.audio.T) < -20.0
    np.testing.assert_allclose(match.audio, 10 ** (match.gain_db / 20) * clip, rtol=1e-5)


def test_silence_keeps_its_level_and_a_peak_above_the_ceiling_is_lowered_even_without_a_loudness() -> None:
    silence = match_loudness(np.zeros((2, RATE_HZ), np.float32), rate_hz=RATE_HZ, target_lufs=-20.0)
    assert (silence.gain_db, silence.limited, silence.loudness_lufs) == (0.0, False, -math.inf)
    assert not silence.audio.any()
    blip = np.full((1, 100), 1.5, np.float32)  # shorter than 400 ms
    match = match_loudness(blip, rate_hz=RATE_HZ, target_lufs=-20.0)
    assert match.limited
    assert match.audio.max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)


def test_the_common_target_is_the_loudest_that_limits_no_clip() -> None:
    clips = [music(channels=2, rate_hz=RATE_HZ, seed=seed).T * scale for seed, scale in enumerate((1.0, 0.4, 0.7))]
    clips[1][0, RATE_HZ] = 5 * np.abs(clips[1]).max()  # a drum hit
    loudnesses, peaks = zip(*(measure_level(clip, rate_hz=RATE_HZ) for clip in clips))
    target = choose_target(loudnesses, peaks)
    assert QUIETEST_TARGET_LUFS < target < LOUDEST_TARGET_LUFS
    matches = [match_loudness(clip, rate_hz=RATE_HZ, target_lufs=target) for clip in clips]
    assert not any(match.limited for match in matches)
    assert [measure_loudness(m.audio.T) for m in matches] == pytest.approx([target] * 3, abs=0.02)
    louder = [match_loudness(clip, rate_hz=RATE_HZ, target_lufs=target + 0.1) for clip in clips]
    assert sum(match.limited for match in louder) == 1


def test_the_common_target_is_bounded_and_silence_does_not_affect_it() -> None:
    assert choose_target([-20.0, -math.inf], [0.1, 0.0]) == LOUDEST_TARGET_LUFS
    assert choose_target([-math.inf], [0.0]) == choose_target([], []) == LOUDEST_TARGET_LUFS
    # -25 LUFS with a peak of 0.5 has 5.02 dB to the ceiling of -1 dBFS
    assert choose_target([-25.0, -30.0], [0.5, 0.01]) == pytest.approx(-25.0 - 1.0 - 20 * math.log10(0.5))
    spike = make_spike()
    loudness, peak = measure_level(spike, rate_hz=RATE_HZ)
    assert choose_target([loudness], [peak]) == QUIETEST_TARGET_LUFS
    assert match_loudness(spike, rate_hz=RATE_HZ, target_lufs=QUIETEST_TARGET_LUFS).limited


def test_levels_and_peaks_of_different_clips_cannot_be_mixed_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        choose_target([-20.0], [0.1, 0.2])
