"""A clip's audio as it leaves the model: of exact length, without clicks, finite, not clipped, encoded as WAV."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

from presto_core.audio.loudness import limit_peak
from presto_core.errors import UserError

Audio = npt.NDArray[np.float32]
FADE_SECONDS = 0.005  # long enough that a cut waveform does not click, too short to be noticed
WavSubtype = Literal["PCM_16", "PCM_24", "FLOAT"]
PCM_SCALES: dict[WavSubtype, float] = {"PCM_16": 2.0**15, "PCM_24": 2.0**23}
TITLE_LETTERS = 400  # libsndfile reads 2 kB per entry; the details hold all


def finish_audio(audio: Audio, rate_hz: int, *, seconds: float | None) -> tuple[Audio, float]:
    """Cut [channels, samples] to `seconds`, fade both ends and limit the peak; return it and the gain in dB.

    Raises:
        UserError: a sample is NaN or infinite, so that there is no music in it.
    """
    check_finite(audio)
    if seconds is not None:
        audio = audio[:, : count_samples(seconds, rate_hz)]
    return limit_peak((audio * _fade_curve(audio.shape[1], rate_hz)).astype(np.float32))


def fade_part(part: Audio, *, start: int, total: int, rate_hz: int) -> Audio:
    """Fade what of a clip's ends is in its part [channels, n], which begins at sample `start` of `total`.

    The bits are those of the same samples in `finish_audio`, up to its limit of the peak.
    """
    fade = count_fade_samples(total, rate_hz)
    if start >= fade and start + part.shape[1] <= total - fade:
        return part
    gains = _fade_curve(total, rate_hz)[start : start + part.shape[1]]
    return (part * gains).astype(np.float32)


def check_finite(audio: Audio) -> None:
    """Refuse audio with NaN or infinity; raises UserError."""
    if not np.isfinite(audio).all():
        raise UserError(
            "the model gives NaN or infinite samples with these settings; use fewer extremes in generate.schedule and "
            "generate.steps, or another model (presto registry verify checks its weights)"
        )


def count_samples(seconds: float, rate_hz: int) -> int:
    return max(1, round(seconds * rate_hz))


def count_fade_samples(samples: int, rate_hz: int) -> int:
    """Return the length of the fade at each end of a clip of so many samples."""
    return min(math.ceil(FADE_SECONDS * rate_hz), samples // 2)


def choose_subtype(audio: Audio, exact: Sequence[slice]) -> WavSubtype:
    """Return the smallest format of a WAV in which the samples `exact` of [channels, samples] keep their bits."""
    for subtype, scale in PCM_SCALES.items():
        parts = (audio[:, part].astype(np.float64) * scale for part in exact)
        if all((part == np.rint(part)).all() and (part >= -scale).all() and (part < scale).all() for part in parts):
            return subtype
    return "FLOAT"


def encode_wav(
    audio: Audio,
    rate_hz: int,
    *,
    title: str,
    details: Mapping[str, object],
    exact: Sequence[slice] = (),
) -> bytes:
    """Return [channels, samples] as a WAV; players show the title, and the comment holds the details as JSON.

    Args:
        exact: parts whose samples keep their bits, by as many bits as they need; else all are of 16 bits.
    """
    subtype: WavSubtype = choose_subtype(audio, exact) if exact else "PCM_16"
    stored = quantize(audio, subtype) if exact else audio
    stream = io.BytesIO()
    soundfile.write(stream, stored.T, rate_hz, format="WAV", subtype=subtype)
    # RIFF: the second word is the length of all that follows it
    wav = stream.getvalue() + _make_info(title, details)
    return wav[:4] + struct.pack("<I", len(wav) - 8) + wav[8:]


def begin_wav(*, samples: int, channels: int, rate_hz: int, title: str, details: Mapping[str, object]) -> bytes:
    """Return what stands before the samples in a 16-bit WAV that is sent while it is made: its lengths are known."""
    info, bytes_per_sample = _make_info(title, details), 2 * channels
    layout = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * bytes_per_sample, bytes_per_sample, 16)
    data = samples * bytes_per_sample
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(layout)) + layout + info + b"data" + struct.pack("<I", data)
    return b"RIFF" + struct.pack("<I", len(body) + data) + body


def encode_part(part: Audio, rate_hz: int) -> bytes:
    """Return the samples [channels, n] as they are in the 16-bit WAV of `encode_wav`."""
    stream = io.BytesIO()
    soundfile.write(stream, part.T, rate_hz, format="RAW", subtype="PCM_16", endian="LITTLE")
    return stream.getvalue()


def quantize(audio: Audio, subtype: WavSubtype) -> npt.NDArray[np.float32] | npt.NDArray[np.int32]:
    """What libsndfile stores as it is; it scales floats by 2^15 - 1, and so changes samples that were read from PCM."""
    if subtype == "FLOAT":
        return audio
    scale = PCM_SCALES[subtype]
    return np.rint(audio.astype(np.float64) * scale).clip(-scale, scale - 1).astype(np.int32) * round(2**31 / scale)


def _make_info(title: str, details: Mapping[str, object]) -> bytes:
    shown = title if len(title) <= TITLE_LETTERS else f"{title[:TITLE_LETTERS]}…"
    comment = json.dumps(details, ensure_ascii=False)
    return _make_info_chunk({b"INAM": shown, b"ICMT": comment, b"ISFT": "presto"})


def _make_info_chunk(entries: Mapping[bytes, str]) -> bytes:
    """Return a LIST chunk of type INFO: texts in UTF-8, ended by a zero, each padded to an even length.

    libsndfile writes one too, but leaves out texts that are longer than its buffer.
    """
    body = b"INFO"
    for name, text in entries.items():
        encoded = text.encode() + b"\0"
        body += name + struct.pack("<I", len(encoded)) + encoded + b"\0" * (len(encoded) % 2)
    return b"LIST" + struct.pack("<I", len(body)) + body


def _fade_curve(samples: int, rate_hz: int) -> npt.NDArray[np.float32]:
    """[samples] gains: half a cosine from 0 to 1 at the start, and back to 0 at the end."""
    fade = count_fade_samples(samples, rate_hz)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / max(fade, 1))
    gains = np.ones(samples, np.float32)
    gains[:fade], gains[samples - fade :] = rise, rise[::-1]
    return gains
