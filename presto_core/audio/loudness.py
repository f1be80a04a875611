"""Integrated loudness (ITU-R BS.1770-4), measured block by block, and the gain to a target loudness."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.signal import sosfilt

from presto_core.audio.decoders import Waveform

OFFSET_DB = -0.691  # annex 1, eq. 2: compensates for the K-weighting of a 997 Hz tone
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
STEP_SECONDS, STEPS_PER_BLOCK = 0.1, 4  # blocks of 400 ms with 75 % overlap
LOWEST_RATE_HZ = 4000

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
