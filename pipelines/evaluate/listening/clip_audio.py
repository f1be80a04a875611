"""The audio of a listening test: clips as read, the low anchor, and their lossless encoding for the page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import butter, sosfiltfilt

from presto_core.audio.loudness import gain, integrated_loudness
from presto_core.errors import UserError

ANCHOR_HZ = 3500.0  # ITU-R BS.1534-3, 5.1: the low-range anchor
AUDIBLE_SHARE = 1e-4  # of the power above ANCHOR_HZ: -40 dB; with less, an anchor sounds as its source does

Samples = npt.NDArray[np.float32]


def read_clip(path: Path) -> tuple[Samples, int]:
    """Read a clip of a report as [N, channels] float32, with its rate in Hz.

    Raises:
        UserError: the file is no audio, is empty, or holds NaN.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path} cannot be read as audio: {error}; fetch the report again") from error
    if not len(samples) or not np.isfinite(samples).all():
        raise UserError(f"{path} holds {'NaN' if len(samples) else 'no samples'}; evaluate again")
    return samples, int(rate_hz)


def make_low_anchor(samples: Samples, *, rate_hz: int) -> Samples:
    """Return [N, channels] without what lies above 3.5 kHz, as loud as before (BS.1534-3, 5.1).

    The order-8 Butterworth filter runs forwards and backwards: 6 dB down at 3.5 kHz, 48 dB at 5 kHz, no delay.
    """
    low = _low_pass(samples, rate_hz)
    before = integrated_loudness([samples], sample_rate_hz=rate_hz)
    after = integrated_loudness([low], sample_rate_hz=rate_hz)
    factor = gain(after, target_lufs=before, peak=float(np.abs(low).max(initial=0.0)))
    return np.asarray(low * factor, dtype=np.float32)


def measure_treble_share(samples: Samples, *, rate_hz: int) -> float:
    """Return the share of the power of [N, channels] that its low anchor lacks, 0 to 1."""
    power = float(np.square(samples, dtype=np.float64).sum())
    lost = float(np.square(samples - _low_pass(samples, rate_hz), dtype=np.float64).sum())
    return lost / power if power else 0.0


def encode_flac(samples: Samples, *, rate_hz: int) -> bytes:
    """Encode [N, channels] as FLAC of 16 bits.

    Every current browser decodes it, and it is lossless: a lossy codec here would be heard as a fault of the systems.
    """
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate_hz, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _low_pass(samples: Samples, rate_hz: int) -> Samples:
    if rate_hz <= 2 * ANCHOR_HZ:
        return samples
    sections = butter(8, ANCHOR_HZ, fs=rate_hz, output="sos")
    pad = min(len(samples) - 1, rate_hz // 20)
    return np.asarray(sosfiltfilt(sections, samples, axis=0, padlen=pad), dtype=np.float32)
