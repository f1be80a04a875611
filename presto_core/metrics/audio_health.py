"""Faults of audio that can be measured on a clip alone: clipping, silence, noise, clicks at the ends, offset, phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfilt

from presto_core.errors import UserError
from presto_core.metrics.stereo import to_mid_side

FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bit
CLIPPED_RUN = 3  # samples in a row; one or two at full scale are what normalization to the peak leaves
FRAME_SECONDS, SILENCE_DBFS = 0.05, -60.0
FFT_SIZE = 2048
FLATNESS_BAND_HZ = (60.0, 8000.0)  # lossy formats and low sample rates leave this band as it is
CLICK_SECONDS, CLICK_CONTEXT_SECONDS, CLICK_BAND_HZ = 0.005, 0.5, 4000.0
CLICK_MARGIN_DB, CLICK_FLOOR_DB = 6.0, -35.0

Float64Array = npt.NDArray[np.float64]


def measure_health(
    audio: npt.NDArray[np.floating], *, rate_hz: int, loudness_lufs: float | None = None
) -> dict[str, float]:
    """Measure one clip [A, N]; values that the clip does not have are absent, never NaN or infinite.

    Args:
        loudness_lufs: the clip's integrated loudness (BS.1770), passed on; -inf, of silence, is left out.

    Returns:
        `peak` (largest absolute sample), `clipped_samples` (see `count_clipped_samples`), `silence` (share of 50 ms
        frames below -60 dBFS), `flatness` (absent for silence), `clicks_start` and `clicks_end` (1 or 0, see
        `has_click_at_start`), `dc_offset` (largest absolute mean of a channel), `loudness_lufs`. Stereo also has
        `mid_power` and `side_power` (mean squares), `side_ratio` (side power per mid power; absent without mid) and
        `mono_compatibility` (correlation of left and right: -1 cancels in mono; absent for silence).

    Raises:
        UserError: the audio is not [A, N] with samples, or contains NaN or infinity.
    """
    _check_clip(audio, rate_hz)
    samples = np.asarray(audio, dtype=np.float64)
    health = {
        "peak": float(np.abs(samples).max()),
        "clipped_samples": float(count_clipped_samples(samples)),
        "silence": measure_silence(samples, rate_hz=rate_hz),
        "clicks_start": float(has_click_at_start(samples, rate_hz=rate_hz)),
        "clicks_end": float(has_click_at_start(samples[:, ::-1], rate_hz=rate_hz)),
        "dc_offset": float(np.abs(samples.mean(axis=1)).max()),
    }
    optional = {"flatness": measure_flatness(samples, rate_hz=rate_hz), "loudness_lufs": loudness_lufs}
    if len(samples) == 2:
        health |= measure_mid_side_power(samples)
        optional["side_ratio"] = _divide(health["side_power"], health["mid_power"])
        optional["mono_compatibility"] = measure_correlation(samples)
    return health | {name: value for name, value in optional.items() if value is not None and math.isfinite(value)}


def summarize_health(clips: Sequence[dict[str, float]]) -> dict[str, float]:
    """Summarize the clips of a system, as returned by `measure_health` (NaN counts as absent); empty for no clips.

    Returns:
        `clipped` (share of clips with clipped samples), `clicks` (share of clips with a click at either end), `silence`
        (mean share of silent frames), `flatness` and `loudness_lufs` (means over the clips that are not silent) and,
        for stereo, `side_ratio` (side power of all clips per mid power of all clips).
    """
    if not clips:
        return {}
    summary = {
        "clipped": _mean([float(clip["clipped_samples"] > 0) for clip in clips]),
        "clicks": _mean([max(clip["clicks_start"], clip["clicks_end"]) for clip in clips]),
        "silence": _mean([clip["silence"] for clip in clips]),
    }
    for name in ("flatness", "loudness_lufs"):
        if values := _collect(clips, name):
            summary[name] = _mean(values)
    side_ratio = _divide(sum(_collect(clips, "side_power")), sum(_collect(clips, "mid_power")))
    return summary if side_ratio is None else summary | {"side_ratio": side_ratio}


def count_clipped_samples(audio: Float64Array) -> int:
    """Count samples of [A, N] at or above full scale, 1 - 2^-15, in runs of at least three of one sign in a channel.

    Shorter runs are left out: a recording that is normalized to its peak has one or two samples at full scale.
    """
    if np.abs(audio).max() < FULL_SCALE:
        return 0
    count = 0
    for at_limit in (*(audio >= FULL_SCALE), *(audio <= -FULL_SCALE)):
        edges = np.flatnonzero(np.diff(at_limit.astype(np.int8), prepend=0, append=0))
        lengths = edges[1::2] - edges[::2]
        count += int(lengths[lengths >= CLIPPED_RUN].sum())
    return count


def measure_silence(audio: Float64Array, *, rate_hz: int) -> float:
    """Return the share of 50 ms frames of [A, N] whose RMS over all channels is below -60 dBFS."""
    powers = _frame_powers(audio, min(round(FRAME_SECONDS * rate_hz), audio.shape[1]))
    return float((powers < 10 ** (SILENCE_DBFS / 10)).mean())


def measure_flatness(audio: Float64Array, *, rate_hz: int) -> float | None:
    """Return the spectral flatness of [A, N] from 60 Hz to 8 kHz, mean over frames weighted by their energy.

    Flatness is the geometric per the arithmetic mean of the power spectrum (Gray & Markel 1974): near 0 for tones,
    exp(-0.5772) = 0.56 for white noise (its bins are exponentially distributed), None for silence.
    """
    power = _power_spectra(audio)
    hz = np.fft.rfftfreq(FFT_SIZE, 1 / rate_hz)
    band = power[:, (hz >= FLATNESS_BAND_HZ[0]) & (hz <= FLATNESS_BAND_HZ[1])]
    energy = band.sum(axis=1)
    if not energy.sum() > 0:
        return None
    band, energy = band[energy > 0], energy[energy > 0]
    arithmetic = band.mean(axis=1)
    # bins of power 0 count as 100 dB below the mean of their frame
    geometric = np.exp(np.log(np.maximum(band, 1e-10 * arithmetic[:, None])).mean(axis=1))
    return float(np.average(geometric / arithmetic, weights=energy))


def has_click_at_start(audio: Float64Array, *, rate_hz: int) -> bool:
    """Return whether a click is heard where [A, N] begins after silence; reverse the audio in time for its end.

    A jump from 0 to the first sample has a flat attack in all bands. It is a click if the energy of the first 5 ms
    above 4 kHz exceeds that of every other 5 ms in the first half second by 6 dB (music with drums or noise masks the
    jump of a cut), and is above -35 dB of the clip's mean energy in all bands (a jump of about a third of its RMS).
    """
    frame = round(CLICK_SECONDS * rate_hz)
    head = audio[:, : frame + round(CLICK_CONTEXT_SECONDS * rate_hz)]
    mean_power = float(np.square(audio).mean())
    if head.shape[1] < 2 * frame or mean_power == 0:
        return False
    first, *others = _frame_powers(
        sosfilt(_design_highpass(rate_hz), head, axis=1), frame
    )  # starts from rest: silence before
    return bool(first > 10 ** (CLICK_MARGIN_DB / 10) * max(others) and first > 10 ** (CLICK_FLOOR_DB / 10) * mean_power)


@lru_cache(maxsize=8)
def _design_highpass(rate_hz: int) -> Float64Array:
    return np.asarray(butter(4, min(CLICK_BAND_HZ, rate_hz / 4), "highpass", fs=rate_hz, output="sos"))


def measure_mid_side_power(audio: Float64Array) -> dict[str, float]:
    """Return the mean squares of mid and side of left and right [2, N]."""
    mid, side = np.square(to_mid_side(audio)).mean(axis=1)
    return {"mid_power": float(mid), "side_power": float(side)}


def measure_correlation(audio: Float64Array) -> float | None:
    """Return the correlation of left and right [2, N] about 0, as a phase meter shows it; None if both are silent."""
    left, right = audio
    if not audio.any():
        return None
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if scale > 0 else 0.0


def _check_clip(audio: npt.NDArray[np.floating], rate_hz: int) -> None:
    if audio.ndim != 2 or audio.size == 0:
        raise UserError(f"audio of shape {list(audio.shape)} has no health; pass one clip [channels, samples]")
    if bad := audio.size - int(np.isfinite(audio).sum()):
        first_s = np.flatnonzero(~np.isfinite(audio).all(axis=0))[0] / rate_hz
        raise UserError(
            f"audio has {bad} NaN or infinite samples of {audio.size}, the first at {first_s:.3f} s; "
            "the model or codec that made it is damaged or diverged: use another checkpoint"
        )


def _frame_powers(audio: Float64Array, frame: int) -> Float64Array:
    """Return the mean squares of the whole frames of [A, N], over channels too."""
    whole = audio[:, : audio.shape[1] // frame * frame]
    return np.square(whole).reshape(len(audio), -1, frame).mean(axis=(0, 2))


def _power_spectra(audio: Float64Array) -> Float64Array:
    """Return power spectra [F, bins] of Hann frames that overlap by half, summed over the channels of [A, N]."""
    padded = np.pad(audio, ((0, 0), (0, max(0, FFT_SIZE - audio.shape[1]))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE, axis=1)[:, :: FFT_SIZE // 2]
    spectra = np.fft.rfft(frames * np.hanning(FFT_SIZE), axis=-1)
    return np.asarray((spectra.real**2 + spectra.imag**2).sum(axis=0))


def _collect(clips: Sequence[dict[str, float]], name: str) -> list[float]:
    """Return a measurement of the clips that have it."""
    return [clip[name] for clip in clips if not math.isnan(clip.get(name, math.nan))]


def _divide(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
