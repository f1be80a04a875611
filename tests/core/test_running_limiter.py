"""The limiter of long pieces: no peak above its ceiling, quiet music untouched, and bits that no cut changes."""

from __future__ import annotations

import numpy as np
import pytest

from presto_core.audio.loudness import CEILING_DBFS
from presto_core.audio.running_limiter import LOOK_AHEAD_SECONDS, RunningLimiter, limit_running

RATE_HZ = 1000
CEILING = 10 ** (CEILING_DBFS / 20)


def make_music(seconds: float, *, channels: int = 1, peaks: dict[float, float] | None = None) -> np.ndarray:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, round(seconds * RATE_HZ))).astype(np.float32)
    for second, peak in (peaks or {}).items():
        audio[-1, round(second * RATE_HZ)] = peak
    return audio


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("peaks", [{0: 3.0}, {4.999: -2.0, 9.999: 9.0}, {0.02 * block: 1.5 for block in range(500)}])
def test_no_sample_is_above_the_ceiling_and_all_channels_share_the_gain(peaks: dict[float, float], channels: int):
    audio = make_music(10, channels=channels, peaks=peaks)
    limited, lowest_db = limit_running(audio, rate_hz=RATE_HZ)
    assert limited.shape == audio.shape
    assert limited.dtype == np.float32
    assert np.abs(limited).max() <= np.float32(CEILING)
    assert lowest_db == pytest.approx(20 * np.log10(CEILING / max(map(abs, peaks.values()))), abs=1e-6)
    gains = limited / audio
    assert np.allclose(gains[0], gains[-1], rtol=1e-5)
    # slow: at most a tenth of the way in 20 ms
    assert np.abs(np.diff(20 * np.log10(np.abs(gains[0][::20])))).max() < 0.1 * abs(lowest_db)


@pytest.mark.parametrize("seed", range(3))
def test_how_the_audio_is_cut_changes_no_bit(seed: int):
    rng = np.random.default_rng(seed)
    audio = make_music(12.345, channels=2, peaks={0.1: 2.0, 6.0: 5.0, 12.3: 1.2})
    cuts = np.sort(rng.integers(0, audio.shape[1], 1 + 20 * seed))
    limiter = RunningLimiter(RATE_HZ)
    parts = [limiter.push(part) for part in np.split(audio, cuts, axis=1)] + [limiter.finish()]
    whole, lowest_db = limit_running(audio, rate_hz=RATE_HZ)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert limiter.lowest_db == lowest_db


def test_music_that_is_not_loud_keeps_its_bits():
    quiet = make_music(9)
    assert np.array_equal(limit_running(quiet, rate_hz=RATE_HZ)[0], quiet)
    loud = make_music(9, peaks={6.0: 4.0})
    limited, lowest_db = limit_running(loud, rate_hz=RATE_HZ)
    until = round((6.0 - LOOK_AHEAD_SECONDS - 0.02) * RATE_HZ)
    assert np.array_equal(limited[:, :until], loud[:, :until])
    assert lowest_db < -12


def test_the_start_is_there_before_the_end_is_known():
    limiter, audio = RunningLimiter(RATE_HZ), make_music(3)
    ready = limiter.push(audio)
    assert ready.shape[1] == pytest.approx((3 - LOOK_AHEAD_SECONDS) * RATE_HZ, abs=20)


@pytest.mark.parametrize("samples", [0, 1, 19, 20, 21])
def test_short_audio_is_limited_too(samples: int):
    audio = np.full((1, samples), 2.0, np.float32)
    limited, _ = limit_running(audio, rate_hz=RATE_HZ)
    assert limited.shape == audio.shape
    assert np.allclose(limited, CEILING)
