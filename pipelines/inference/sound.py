"""Given audio: read from a file as it is, checked, and brought to the rate and channels of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.console import make_printable
from presto_core.audio.chunks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, Waveform, decode_blocks
from presto_core.audio.codec import Codec
from presto_core.audio.decoders import open_sound
from presto_core.audio.sound import AudioError
from presto_core.errors import UserError

SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 3600.0
SILENT_PEAK = 1e-4  # -80 dBFS
CHANNEL_NAMES = {1: "mono", 2: "stereo"}


@dataclass(frozen=True)
class Sound:
    """Audio in memory: [channels, samples] float32, nominally within -1 ... 1."""

    audio: npt.NDArray[np.float32]
    sample_rate_hz: int


class HasAudio(Protocol):
    """A `Sound`, or a clip that was generated."""

    @property
    def audio(self) -> npt.NDArray[np.float32]: ...

    @property
    def sample_rate_hz(self) -> int: ...


@dataclass(frozen=True)
class FittedSound:
    """Audio as a model takes it.

    Attributes:
        audio: [A, N] at the codec's rate, of its channels; the given array's samples if nothing had to be changed.
        converted: what was changed, in words; empty if nothing.
        digest: of the given audio.
    """

    audio: npt.NDArray[np.float32]
    converted: str
    digest: str


def read_sound(file: str | Path | BinaryIO, *, longest_seconds: float = LONGEST_SECONDS) -> Sound:
    """Read an audio file at its own rate, mono or stereo; more channels become their mean.

    Raises:
        UserError: it is missing, not readable as audio, empty, has NaN, or is longer than `longest_seconds`.
    """
    if not isinstance(file, (str, Path)):
        return _read(file, "the audio", longest_seconds)
    name = make_printable(str(file))
    try:
        with Path(file).open("rb") as stream:
            return _read(stream, name, longest_seconds)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}; give an audio file") from None
    except ValueError:  # a NUL in the name
        raise UserError(f"{name} is not the name of a file; give an audio file") from None


def _read(stream: BinaryIO, name: str, longest_seconds: float) -> Sound:
    try:
        with open_sound(stream) as sound:
            rate_hz, channels = sound.sample_rate_hz, sound.channels
        stream.seek(0)
        blocks = decode_blocks(stream, sample_rate_hz=rate_hz, channels=channels if channels <= 2 else 1)
        parts = list(_limit(blocks, round(longest_seconds * rate_hz), f"{longest_seconds:g} s"))
    except AudioError as error:
        raise UserError(f"{name} {_describe_error(error)}; give an audio file, such as a WAV or FLAC") from None
    return Sound(np.ascontiguousarray(np.concatenate(parts).T), rate_hz)


def _limit(blocks: Iterator[Waveform], samples: int, limit: str) -> Iterator[Waveform]:
    count = 0
    for block in blocks:
        count += len(block)
        if count > samples:
            raise AudioError(f"is longer than {limit}")
        yield block


def _describe_error(error: AudioError) -> str:
    text = str(error)
    return f"is {text}" if text.startswith("not ") else text


def fit_sound(sound: HasAudio, codec: Codec) -> FittedSound:
    """Check audio and convert it for a model; audio of the model's rate and channels is not touched.

    Raises:
        UserError: it is no [channels, samples] of numbers, has NaN, is silent, too short or too long.
    """
    audio, rate_hz = _check(sound)
    digest = hashlib.sha256(np.ascontiguousarray(audio).tobytes() + str(rate_hz).encode()).hexdigest()[:16]
    changes = []
    if audio.shape[0] != codec.audio_channels:
        old, new = (CHANNEL_NAMES.get(count, f"{count} channels") for count in (audio.shape[0], codec.audio_channels))
        changes.append(f"{old} to {new}")
        audio = np.repeat(audio.mean(axis=0, dtype=np.float64)[None], codec.audio_channels, axis=0).astype(np.float32)
    if rate_hz != codec.sample_rate_hz:
        import soxr

        changes.append(f"{rate_hz} to {codec.sample_rate_hz} Hz")
        audio = soxr.resample(audio.T, rate_hz, codec.sample_rate_hz, quality="HQ").T
    return FittedSound(np.ascontiguousarray(audio, dtype=np.float32), ", ".join(changes), digest)


def _check(sound: HasAudio) -> tuple[npt.NDArray[np.float32], int]:
    audio, rate_hz = np.asarray(sound.audio), sound.sample_rate_hz
    if audio.ndim != 2 or not np.issubdtype(audio.dtype, np.floating):
        raise UserError(
            f"the audio is {audio.dtype} of shape {list(audio.shape)}; give floats [channels, samples] within -1 ... 1"
        )
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise UserError(f"the audio has {rate_hz} Hz; give {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz")
    seconds = audio.shape[1] / rate_hz
    if not audio.size or seconds < SHORTEST_SECONDS:
        raise UserError(
            f"the audio has {audio.shape[1]} samples ({seconds:.4f} s); give at least {SHORTEST_SECONDS:g} s"
        )
    if seconds > LONGEST_SECONDS:
        raise UserError(f"the audio lasts {seconds:.0f} s; give at most {LONGEST_SECONDS:g} s")
    if bad := int(np.count_nonzero(~np.isfinite(audio))):
        raise UserError(f"{bad} of {audio.size} samples of the audio are NaN or infinite; export it anew")
    if float(np.abs(audio).max()) < SILENT_PEAK:
        raise UserError("the audio is silent; give audio with music in it, or generate from a prompt")
    return audio.astype(np.float32, copy=False), rate_hz
