"""Integrated loudness (ITU-R BS.1770-4), measured block by block, and the gain to one loudness for clips to compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from presto_core.audio.sound import Waveform

OFFSET_DB = -0.691  # annex 1, eq. 2: compensates for the K-weighting of a 997 Hz tone
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
STEP_SECONDS, STEPS_PER_BLOCK = 0.1, 4  # blocks of 400 ms with 75 % overlap
LOWEST_RATE_HZ = 4000
CEILING_DBFS = -1.0  # of the sample peaks of matched clips; the rest is room for peaks between samples
QUIETEST_TARGET_LUFS, LOUDEST_TARGET_LUFS = -30.0, -16.0
GAIN_TOLERANCE_DB = 1e-6

Float64Array = npt.NDArray[np.float64]


def integrated_loudness(blocks: Iterable[Waveform], *, sample_rate_hz: int) -> float:
    """Return the gated loudness in LUFS with weight 1 per channel; independent of how the audio is cut into blocks.

    Args:
        blocks: [n, channels], in order; read once, keeping ten numbers per second.

    Returns:
        -inf if no 400 ms block is above -70 LUFS, or the audio is shorter than one block.
    """
    powers = _step_powers(blocks, sample_rate_hz)
    if len(powers) < STEPS_PER_BLOCK:
        return -math.inf
    power = np.lib.stride_tricks.sliding_window_view(powers, STEPS_PER_BLOCK).mean(axis=1)
    power = power[power > _lufs_to_power(ABSOLUTE_GATE_LUFS)]
    if not len(power):
        return -math.inf
    gate = _power_to_lufs(power.mean()) + RELATIVE_GATE_LU  # annex 1, eqs. 5 to 7
    return _power_to_lufs(power[power > _lufs_to_power(gate)].mean())


def gain(loudness_lufs: float, *, target_lufs: float, peak: float = 0.0) -> float:
    """Return the factor that scales music to the target loudness; 1 for silence, whose loudness is -inf.

    Args:
        peak: largest absolute sample of the music; the scaled peak is at most 1. 0 sets no limit.
    """
    if not math.isfinite(loudness_lufs):
        return 1.0
    factor = float(10 ** ((target_lufs - loudness_lufs) / 20))
    return min(factor, 1 / peak) if peak > 0 else factor


@dataclass(frozen=True)
class LoudnessMatch:
    """A clip scaled for comparison at equal loudness.

    Attributes:
        audio: [A, N] float32, scaled; its sample peak is at most -1 dBFS and nothing is clipped.
        loudness_lufs: integrated loudness before scaling; -inf for silence and clips shorter than 400 ms.
        gain_db: what the clip was scaled by.
        limited: the target would have exceeded the peak, so the gain is lower and the clip is quieter than the target.
    """

    audio: npt.NDArray[np.float32]
    loudness_lufs: float
    gain_db: float
    limited: bool


def match_loudness(audio: npt.NDArray[np.floating], *, rate_hz: int, target_lufs: float) -> LoudnessMatch:
    """Scale a clip [A, N] to the target loudness, as far as its sample peak stays at or below -1 dBFS.

    A clip without a loudness (silence) keeps its level unless its peak is higher than that. The absolute gate of
    -70 LUFS is applied at the level before scaling, so a clip with passages that soft may end 0.2 dB off the target.
    """
    loudness_lufs, peak = measure_level(audio, rate_hz=rate_hz)
    wanted_db = target_lufs - loudness_lufs if math.isfinite(loudness_lufs) else 0.0
    highest_db = CEILING_DBFS - _to_db(peak)
    gain_db = min(wanted_db, highest_db)
    scaled = (10 ** (gain_db / 20) * np.asarray(audio, dtype=np.float64)).astype(np.float32)
    return LoudnessMatch(scaled, loudness_lufs, gain_db, limited=wanted_db > highest_db + GAIN_TOLERANCE_DB)


def limit_peak(
    audio: npt.NDArray[np.float32], *, ceiling_dbfs: float = CEILING_DBFS
) -> tuple[npt.NDArray[np.float32], float]:
    """Turn a clip [A, N] down to a sample peak of -1 dBFS if it is higher; return it and the gain in dB, at most 0.

    Its shape stays, where clipping would flatten it.
    """
    gain_db = min(0.0, ceiling_dbfs - _to_db(float(np.abs(audio).max(initial=0.0))))
    return (audio * np.float32(10 ** (gain_db / 20)) if gain_db < 0 else audio), gain_db


def measure_level(audio: npt.NDArray[np.floating], *, rate_hz: int) -> tuple[float, float]:
    """Return the integrated loudness in LUFS and the largest absolute sample of a clip [A, N], for `choose_target`."""
    samples = np.asarray(audio, dtype=np.float32)
    loudness_lufs = integrated_loudness([samples.T], sample_rate_hz=rate_hz)
    return loudness_lufs, float(np.abs(samples).max(initial=0.0))


def choose_target(loudnesses_lufs: Sequence[float], peaks: Sequence[float]) -> float:
    """Return the loudest target at which no clip's peak limits its gain, within -30 ... -16 LUFS.

    Args:
        loudnesses_lufs: per clip; clips of -inf (silence) are left out.
        peaks: largest absolute sample of each clip.

    At the quiet bound some clips may still be limited: `match_loudness` marks each, so count those.
    """
    levels = [(lufs, peak) for lufs, peak in zip(loudnesses_lufs, peaks, strict=True) if math.isfinite(lufs)]
    loudest = min((lufs + CEILING_DBFS - _to_db(peak) for lufs, peak in levels), default=LOUDEST_TARGET_LUFS)
    return min(max(loudest, QUIETEST_TARGET_LUFS), LOUDEST_TARGET_LUFS)


def k_weighting(sample_rate_hz: int) -> Float64Array:
    """Return the filter of annex 1 as second-order sections [2, 6]: the high shelf of the head, then a high pass.

    The standard tabulates it at 48 kHz only. These are the analogue prototypes of the table, bilinear-transformed at
    this rate, with the table's passband gain of the high pass; below 32 kHz they deviate by up to 0.1 dB.
    """
    if sample_rate_hz < LOWEST_RATE_HZ:
        raise ValueError(f"sample_rate_hz={sample_rate_hz} is too low for the filter; use at least {LOWEST_RATE_HZ}")
    return np.stack([_high_shelf(sample_rate_hz), _high_pass(sample_rate_hz)])


def _high_shelf(rate_hz: int) -> Float64Array:
    k, q = math.tan(math.pi * 1681.974450955533 / rate_hz), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    numerator = np.array([high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k])
    return _biquad(numerator, k, q)


def _high_pass(rate_hz: int) -> Float64Array:
    hz, q = 38.13547087602444, 0.5003270373238773
    k, k_48khz = math.tan(math.pi * hz / rate_hz), math.tan(math.pi * hz / 48000)
    return _biquad(np.array([1.0, -2.0, 1.0]) * (1 + k_48khz / q + k_48khz * k_48khz), k, q)


def _biquad(numerator: Float64Array, k: float, q: float) -> Float64Array:
    denominator = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return np.concatenate([numerator, denominator]) / denominator[0]


def _step_powers(blocks: Iterable[Waveform], rate_hz: int) -> Float64Array:
    """Return the mean square, summed over channels, of each full 100 ms of K-weighted audio (annex 1, eq. 1)."""
    from scipy.signal import sosfilt  # importing it takes as long as PyTorch, and a clip's peak needs none of it

    filters, step = k_weighting(rate_hz), round(STEP_SECONDS * rate_hz)
    state: Float64Array | None = None
    left, powers = np.zeros(0), []
    for block in blocks:
        state = np.zeros((len(filters), 2, block.shape[1])) if state is None else state
        weighted, state = sosfilt(filters, block.astype(np.float64), axis=0, zi=state)
        square = np.concatenate([left, (weighted * weighted).sum(axis=1)])
        whole = len(square) // step * step
        powers.append(square[:whole].reshape(-1, step).mean(axis=1))
        left = square[whole:]
    return np.concatenate(powers) if powers else np.zeros(0)


def _power_to_lufs(power: float) -> float:
    # ITU-R BS.1770-4, annex 1, eq. 2
    return OFFSET_DB + 10 * math.log10(power)


def _lufs_to_power(loudness_lufs: float) -> float:
    return float(10 ** ((loudness_lufs - OFFSET_DB) / 10))


def _to_db(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf
