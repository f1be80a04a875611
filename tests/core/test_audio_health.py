"""Audio health: known answers of tones, noise, clipping, silence, cuts and stereo; shares over a system's clips."""

from __future__ import annotations

import math

import numpy as np
import pytest

from presto_core.errors import UserError
from presto_core.metrics.audio_health import measure_health, summarize_health

RATE_HZ = 44100


def sine(hz: float = 440.0, *, peak: float = 0.5, seconds: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """Return [1, N] float32."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (peak * np.sin(2 * np.pi * hz * time + phase))[None].astype(np.float32)


def noise(channels: int = 1, *, std: float = 0.1, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    shape = (channels, round(seconds * RATE_HZ))
    return (std * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def fade(clip: np.ndarray, *, seconds: float = 0.005) -> np.ndarray:
    ramp = np.linspace(0, 1, round(seconds * RATE_HZ), dtype=np.float32)
    faded = clip.copy()
    faded[:, : len(ramp)] *= ramp
    faded[:, -len(ramp) :] *= ramp[::-1]
    return faded


def measure(clip: np.ndarray) -> dict[str, float]:
    return measure_health(clip, rate_hz=RATE_HZ)


# --- clipping


def test_every_sample_that_the_converter_cuts_off_is_counted() -> None:
    whole = 1.5 * np.sin(2 * np.pi * 441 * np.arange(RATE_HZ) / RATE_HZ)[None].astype(np.float32)
    over = int((np.abs(whole) >= 1 - 2**-15).sum())
    assert over > 10_000
    assert measure(whole)["clipped_samples"] == measure(whole.clip(-1, 1))["clipped_samples"] == over
    stereo = np.concatenate([whole, 0.1 * whole])
    assert measure(stereo)["clipped_samples"] == over
    assert measure(0.66 * whole)["clipped_samples"] == 0


def test_a_recording_normalized_to_its_peak_is_not_clipped_and_three_samples_in_a_row_are() -> None:
    clip = noise()
    assert measure(clip / np.abs(clip).max())["clipped_samples"] == 0
    clip[0, 100:103] = 32767 / 32768
    assert measure(clip)["clipped_samples"] == 3
    clip[0, 101] *= -1  # no run of one sign
    assert measure(clip)["clipped_samples"] == 0


def test_a_square_wave_at_full_scale_is_clipped_throughout_and_one_below_is_not() -> None:
    square = np.sign(sine(441, phase=0.03))  # half periods of 50 samples, none of them cut
    assert measure(square)["clipped_samples"] == measure(square)["peak"] * RATE_HZ == RATE_HZ
    assert measure(0.99 * square)["clipped_samples"] == 0


# --- level and spectrum


def test_silence_is_silent_and_has_neither_flatness_nor_loudness() -> None:
    health = measure_health(np.zeros((2, RATE_HZ), np.float32), rate_hz=RATE_HZ, loudness_lufs=-math.inf)
    assert health["silence"] == 1.0
    assert health["peak"] == health["clipped_samples"] == health["clicks_start"] == health["clicks_end"] == 0.0
    assert not {"flatness", "loudness_lufs", "side_ratio", "mono_compatibility"} & set(health)


@pytest.mark.parametrize(("level_dbfs", "silence"), [(-59.0, 0.6), (-61.0, 1.0)])
def test_silence_is_the_share_of_frames_below_minus_60_dbfs(level_dbfs: float, silence: float) -> None:
    clip = sine(440, peak=math.sqrt(2) * 10 ** (level_dbfs / 20))
    clip[:, round(0.4 * RATE_HZ) :] = 0
    assert measure(clip)["silence"] == silence


def test_flatness_is_almost_0_for_tones_and_exp_of_minus_eulers_constant_for_white_noise() -> None:
    """The bins of white noise are exponentially distributed: E log X = -gamma, E X = 1."""
    assert measure(sine())["flatness"] < 1e-6
    assert measure(noise(seconds=10))["flatness"] == pytest.approx(math.exp(-np.euler_gamma), rel=0.01)
    impulse = np.zeros((1, 4096), np.float32)
    impulse[0, 2048] = 1.0
    assert measure(impulse)["flatness"] == pytest.approx(1.0, rel=1e-6)


def test_flatness_depends_on_neither_level_nor_a_low_pass_above_its_band() -> None:
    clip = noise(seconds=4)
    flatness = measure(clip)["flatness"]
    assert measure(0.01 * clip)["flatness"] == pytest.approx(flatness, rel=1e-4)
    spectrum = np.fft.rfft(clip)
    spectrum[:, 4 * 16000 :] = 0  # as mp3 at 128 kbit/s
    assert measure(np.fft.irfft(spectrum))["flatness"] == pytest.approx(flatness, rel=0.01)


def test_flatness_weights_frames_by_their_energy() -> None:
    tone_then_hiss = np.concatenate([sine(), noise(std=1e-4)], axis=1)
    assert measure(tone_then_hiss)["flatness"] < 1e-3
    assert measure(np.concatenate([noise(), np.zeros((1, 9 * RATE_HZ))], axis=1))["flatness"] > 0.5


def test_offset_is_the_mean_of_the_worse_channel() -> None:
    clip = np.concatenate([sine() - 0.25, sine() + 0.125])
    assert measure(clip)["dc_offset"] == pytest.approx(0.25, abs=1e-6)


def test_loudness_is_passed_on() -> None:
    assert measure_health(sine(), rate_hz=RATE_HZ, loudness_lufs=-18.5)["loudness_lufs"] == -18.5


# --- clicks at the ends


@pytest.mark.parametrize("hz", [110.0, 440.0, 1000.0])
def test_a_tone_that_begins_or_ends_at_its_crest_clicks_there_only(hz: float) -> None:
    clip = sine(hz, phase=math.pi / 2)  # whole periods: the end is at the crest, too
    assert (measure(clip)["clicks_start"], measure(clip)["clicks_end"]) == (1.0, 1.0)
    start_only, end_only = clip.copy(), clip.copy()
    faded = fade(clip)
    start_only[:, RATE_HZ // 2 :], end_only[:, : RATE_HZ // 2] = faded[:, RATE_HZ // 2 :], faded[:, : RATE_HZ // 2]
    assert (measure(start_only)["clicks_start"], measure(start_only)["clicks_end"]) == (1.0, 0.0)
    assert (measure(end_only)["clicks_start"], measure(end_only)["clicks_end"]) == (0.0, 1.0)


@pytest.mark.parametrize("hz", [110.0, 440.0, 1000.0])
def test_neither_a_fade_nor_a_start_at_zero_clicks(hz: float) -> None:
    for clip in (fade(sine(hz, phase=math.pi / 2)), sine(hz)):
        assert measure(clip)["clicks_start"] == measure(clip)["clicks_end"] == 0.0


def test_noise_and_drums_mask_the_jump_of_a_cut() -> None:
    assert measure(noise())["clicks_start"] == measure(noise())["clicks_end"] == 0.0
    drums = sine(110.0, phase=math.pi / 2)
    for at in range(4000, RATE_HZ - 4000, 8000):
        drums[:, at : at + 2000] += 0.5 * noise(seconds=1)[:, :2000] / 0.1 * np.exp(-np.arange(2000) / 300)
    assert measure(drums)["clicks_start"] == measure(drums)["clicks_end"] == 0.0


def test_a_click_does_not_depend_on_the_level_and_is_found_on_one_channel_and_at_low_rates() -> None:
    clip = sine(440, phase=math.pi / 2)
    assert measure(1e-3 * clip)["clicks_start"] == 1.0
    assert measure(np.concatenate([fade(clip), clip]))["clicks_start"] == 1.0
    assert measure_health(clip, rate_hz=8000)["clicks_start"] == 1.0


# --- stereo


def test_side_ratio_and_correlation_of_known_stereo_fields() -> None:
    left, right = noise(seconds=10), noise(seconds=10, seed=1)
    cases = {
        "mono": (left, left, 0.0, 1.0),
        "independent": (left, right, 1.0, 0.0),
        "one channel": (left, 0 * left, 1.0, 0.0),
        "half": (left, 0.5 * left, 1 / 9, 1.0),  # (1 - 1/2)^2 / (1 + 1/2)^2
    }
    for name, (a, b, side_ratio, correlation) in cases.items():
        health = measure(np.concatenate([a, b]))
        assert health["side_ratio"] == pytest.approx(side_ratio, abs=0.01), name
        assert health["mono_compatibility"] == pytest.approx(correlation, abs=0.01), name
    opposite = measure(np.concatenate([left, -left]))
    assert opposite["mono_compatibility"] == pytest.approx(-1.0)
    assert "side_ratio" not in opposite  # there is no mid
    assert opposite["side_power"] == pytest.approx(float(np.square(left).mean()), rel=1e-5)


def test_mono_has_no_stereo_measurements() -> None:
    assert not {"side_ratio", "mono_compatibility", "mid_power", "side_power"} & set(measure(noise()))


# --- a system


def test_a_system_is_summarized_by_shares_of_clips_and_means() -> None:
    click, clean = sine(phase=math.pi / 2), fade(sine())
    clipped, silent = fade((4 * sine()).clip(-1, 1)), 0 * sine()
    clips = [
        measure_health(clip, rate_hz=RATE_HZ, loudness_lufs=lufs)
        for clip, lufs in ((click, -10.0), (clean, -20.0), (clipped, -6.0), (silent, -math.inf))
    ]
    summary = summarize_health(clips)
    assert set(summary) == {"clipped", "clicks", "silence", "flatness", "loudness_lufs"}
    assert (summary["clipped"], summary["clicks"], summary["silence"]) == (0.25, 0.25, 0.25)
    assert summary["loudness_lufs"] == pytest.approx(-12.0)
    assert summary["flatness"] == pytest.approx(np.mean([clip["flatness"] for clip in clips[:3]]))


def test_nan_counts_as_absent_because_tables_of_clips_have_no_other_way_to_store_that() -> None:
    mono, silent = measure(sine()), measure(0 * sine())
    names = {*mono, "side_power", "mid_power", "loudness_lufs"}
    rows = [{name: clip.get(name, math.nan) for name in names} for clip in (mono, silent)]
    assert summarize_health(rows) == summarize_health([mono, silent])


def test_the_side_ratio_of_a_system_is_that_of_its_power_so_one_clip_without_mid_does_not_dominate() -> None:
    left = noise(seconds=10)
    clips = [measure(np.concatenate([left, left])), measure(np.concatenate([left, -left]))]
    assert summarize_health(clips)["side_ratio"] == pytest.approx(1.0)
    assert "side_ratio" not in summarize_health([clips[1]])
    assert summarize_health([clips[0]])["side_ratio"] == 0.0


def test_values_are_plain_finite_floats() -> None:
    for clip in (sine(), noise(2), np.zeros((2, 10), np.float32), np.ones((1, 1), np.float32)):
        health = measure(clip)
        assert all(type(value) is float and math.isfinite(value) for value in health.values())
        assert all(type(value) is float for value in summarize_health([health]).values())
    assert summarize_health([]) == {}


def test_damaged_audio_is_refused_with_what_is_wrong() -> None:
    clip = sine()
    clip[0, [4410, 8820]] = np.nan, np.inf
    with pytest.raises(UserError, match=r"2 NaN or infinite samples of 44100, the first at 0\.100 s"):
        measure(clip)
    for shape in ((0,), (1, 0), (10,), (1, 1, 10)):
        with pytest.raises(UserError, match=r"shape"):
            measure(np.zeros(shape, np.float32))
