"""Kept audio keeps its bits, what is between goes on without a click or a hole, and a seam is measured as it sounds."""

from __future__ import annotations

import numpy as np
import pytest

from presto_core.audio.seam import measure_floor, measure_seam
from presto_core.audio.splice import close_loop, crossfade, extrapolate, insert

RATE_HZ = 16000
TIME = np.arange(2 * RATE_HZ) / RATE_HZ


def tone(hz: float, phase: float = 0.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * TIME + phase))[None].astype(np.float32)


def noise(seed: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, len(TIME))).astype(np.float32)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 4000), (5000, 6000), (5000, 3), (28000, 4000), (0, 32000), (1, 31998)]
)
def test_samples_outside_of_what_is_inserted_keep_their_bits(start: int, length: int):
    kept, made = noise(0, channels=2), noise(1, channels=2)[:, :length]
    joined = insert(kept, made, start=start, rate_hz=RATE_HZ, fade_ends=80)
    assert joined.dtype == np.float32
    assert np.array_equal(joined[:, :start], kept[:, :start])
    assert np.array_equal(joined[:, start + length :], kept[:, start + length :])
    middle = slice(length // 2 - length // 8, length // 2 + length // 8)
    assert np.array_equal(joined[:, start : start + length][:, middle], made[:, middle])
    assert np.isfinite(joined).all()


def test_linear_prediction_continues_tones_and_never_grows():
    chord = tone(220) + tone(277, 1.0) + tone(1330, 2.0, level=0.1)
    continued = extrapolate(chord[:, :3200], 480)
    assert np.abs(continued - chord[:, 3200:3680]).max() < 0.02
    assert np.abs(extrapolate(noise(0)[:, :3200], 16000)).max() < 0.5
    assert not extrapolate(np.zeros((1, 3200), np.float32), 100).any()
    assert extrapolate(np.full((1, 1), 0.5, np.float32), 10).shape == (1, 10)


def test_a_crossfade_has_constant_power_whatever_it_joins():
    one, two = noise(0), noise(1)
    assert np.abs(crossfade(one, one) - one).max() < 1e-6
    power = np.square(crossfade(one, two)).reshape(20, -1).mean(axis=1)
    assert power.min() > 0.8 * np.square(one).mean()


@pytest.mark.parametrize("phase", [0.5, 1.5, 2.2])
def test_a_tone_of_another_phase_is_joined_without_the_click_of_a_cut(phase: float):
    kept, made, at = tone(440), tone(440, phase)[:, :8000], 9000
    cut = np.concatenate([kept[:, :at], made, kept[:, at + 8000 :]], axis=1)
    joined = insert(kept, made, start=at, rate_hz=RATE_HZ)
    assert measure_seam(cut, at, rate_hz=RATE_HZ).click_db > 3
    assert measure_seam(joined, at, rate_hz=RATE_HZ).click_db < 1
    assert measure_seam(joined, at + 8000, rate_hz=RATE_HZ).click_db < 1


def test_the_change_at_a_seam_is_that_of_the_sound():
    same = measure_seam(noise(0), RATE_HZ, rate_hz=RATE_HZ)
    louder = measure_seam(np.where(TIME < 1, noise(0), 4 * noise(0)), RATE_HZ, rate_hz=RATE_HZ)
    assert louder.change_db == pytest.approx(12, abs=2.5)
    assert same.change_db < 4
    assert louder.seconds == 1.0
    assert len(measure_floor(noise(0), rate_hz=RATE_HZ, count=5)) == 5
    assert measure_floor(noise(0)[:, :100], rate_hz=RATE_HZ, count=5) == []


def test_a_loop_turns_without_a_click():
    hz, length, seam = 330.3, 15000, 480  # no whole number of periods
    loop, before = tone(hz)[:, :length], tone(hz, -2 * np.pi * hz * seam / RATE_HZ)[:, :seam]
    closed = close_loop(loop, before)
    open_turn, turn = (measure_seam(np.roll(a, 5000, axis=1), 5000, rate_hz=RATE_HZ) for a in (loop, closed))
    assert open_turn.click_db > turn.click_db + 3
    assert np.array_equal(closed[:, :-seam], loop[:, :-seam])
