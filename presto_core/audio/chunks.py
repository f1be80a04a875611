"""Audio files -> fixed windows of samples: decode, mix to mono, resample, cut. The first room of the flow."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from presto_core.config.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")

Waveform = npt.NDArray[np.float32]


class AudioError(UserError):
    """A file that cannot be used as music; the message says why."""


def is_audio(name: str) -> bool:
    """Whether a file's name has a suffix that `decode` reads."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def decode(stream: BinaryIO, *, sample_rate_hz: int) -> Waveform:
    """Decode a whole file to mono at the wanted rate.

    Args:
        stream: seekable file content (wav, flac, ogg, opus, mp3, aiff).

    Returns:
        [N] float32, nominally within -1 ... 1.

    Raises:
        AudioError: the bytes are no audio this decoder reads, are empty, or hold NaN or infinity; or they are cut
            short and the format can tell, as flac can (of a cut wav or mp3 what is left is used).
    """
    try:
        samples, rate_hz = soundfile.read(stream, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        # without the exception's prefix, which names the stream by its address in memory
        raise AudioError(f"not readable as audio: {' '.join(error.error_string.split())}") from None
    except RuntimeError as error:
        raise AudioError(f"not readable as audio: {' '.join(str(error).split())}") from None
    if not len(samples):
        raise AudioError("holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError("holds NaN or infinite samples")
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if rate_hz == sample_rate_hz else soxr.resample(mono, rate_hz, sample_rate_hz)


def windows(samples: Waveform, *, length: int, step: int) -> npt.NDArray[np.float32]:
    """Cut [N] samples into full windows [W, length], `step` apart; what is left at the end is dropped.

    Raises:
        AudioError: the audio is shorter than one window.
    """
    if len(samples) < length:
        raise AudioError(f"shorter than one window: {len(samples)} of {length} samples")
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::step]
