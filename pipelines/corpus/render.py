"""Render a Piece to audio: soundfont synthesis, resampling and one loudness for all clips."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.corpus.score import Piece, to_midi
from presto_core.extras import find_package_folder, import_extra

SAMPLE_RATE_HZ = 44_100
SOUNDFONT_FILE = "TimGM6mb.sf2"
SOUNDFONT_LICENCE = "TimGM6mb soundfont by Tim Brechbill, GPL-2 as distributed by Debian"
TARGET_RMS_DBFS = -20.0
KNEE = 0.6
FADE_SECONDS = 0.4


def find_soundfont() -> Path:
    """Return the path of the soundfont in the installed pretty_midi package, without importing the package."""
    path = find_package_folder("pretty_midi", "the corpus's soundfont") / SOUNDFONT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"the installed pretty_midi lacks {SOUNDFONT_FILE}; install the pinned version")
    return path


@lru_cache(maxsize=1)
def _read_soundfont() -> bytes:
    return find_soundfont().read_bytes()


def synthesize(piece: Piece) -> tuple[np.ndarray, int]:
    """Synthesize the piece; return float32 audio [frames, 2] and its sample rate."""
    import soundfile

    midirenderer = import_extra("midirenderer", "rendering music")
    wave = midirenderer.render_wave_from(_read_soundfont(), to_midi(piece))
    audio, sample_rate_hz = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    return audio, sample_rate_hz


def fit_length(audio: np.ndarray, frames: int) -> np.ndarray:
    """Cut audio, or pad it with silence, to exactly `frames`."""
    missing = max(0, frames - len(audio))
    return np.pad(audio[:frames], [(0, missing), *[(0, 0)] * (audio.ndim - 1)])


def soft_limit(audio: np.ndarray, knee: float = KNEE) -> np.ndarray:
    """Leave samples below the knee unchanged and compress those above it smoothly towards ±1, so nothing clips."""
    over = np.maximum(np.abs(audio) - knee, 0.0)
    bent = knee + (1 - knee) * np.tanh(over / (1 - knee))
    return np.where(over > 0, np.sign(audio) * bent, audio).astype(np.float32)


def normalize(audio: np.ndarray, target_rms_dbfs: float = TARGET_RMS_DBFS) -> np.ndarray:
    """Scale audio to the target RMS and soft-limit it; ValueError for silence, which scaling would turn into noise."""
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    if rms < 1e-5:
        raise ValueError(f"the rendered excerpt is silent (RMS {rms:.1e}); choose an excerpt with notes")
    return soft_limit(audio * np.float32(10 ** (target_rms_dbfs / 20) / rms))


def fade_out(audio: np.ndarray, sample_rate_hz: int, fade_seconds: float = FADE_SECONDS) -> np.ndarray:
    """Fade the last `fade_seconds` to silence, so that a cut note does not click."""
    count = min(len(audio), round(fade_seconds * sample_rate_hz))
    ramp = np.ones(len(audio), dtype=np.float32)
    ramp[len(audio) - count :] = np.linspace(1.0, 0.0, count, dtype=np.float32)
    return audio * (ramp if audio.ndim == 1 else ramp[:, None])


def render(piece: Piece, *, seconds: float, sample_rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1) -> np.ndarray:
    """Render `seconds` of the piece as float32 in [-1, 1]: [frames] for mono, [frames, 2] for stereo."""
    import soxr

    if channels not in (1, 2):
        raise ValueError(f"channels={channels} must be 1 or 2")
    audio, rate_hz = synthesize(piece)
    audio = fit_length(audio.mean(1) if channels == 1 else audio, round(seconds * rate_hz))
    audio = soxr.resample(audio, rate_hz, sample_rate_hz, quality="HQ")
    audio = fit_length(np.asarray(audio, dtype=np.float32), round(seconds * sample_rate_hz))
    return fade_out(normalize(audio), sample_rate_hz)
