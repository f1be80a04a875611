"""Read formats that libsndfile does not know, or not well, with PyAV, an optional package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.sound import (
    DAMAGED,
    UNKNOWN_LENGTH,
    AudioError,
    Sound,
    Waveform,
    describe_unreadable,
    truncate,
)

PACKET_SAMPLES = 4096  # an m4a states its length in milliseconds, and players differ on the ends
OGG_FLAC = rb"OggS.{24}\x7fFLAC"
NEEDS_PYAV = {
    "m4a/AAC": rb"....ftyp|\xff[\xf0\xf1\xf8\xf9]|ADIF",
    "WebM or Matroska": rb"\x1aE\xdf\xa3",
    "WMA": rb"0&\xb2u\x8ef\xcf\x11",
    "WavPack": rb"wvpk",
    "Monkey's Audio": rb"MAC ",
    "Ogg FLAC": OGG_FLAC,
}
# FFmpeg also follows playlists to other files and hosts: allow only plain audio containers
DEMUXERS = "aac,aiff,ape,asf,caf,flac,matroska,mov,mp3,ogg,wav,webm,wv"


def prefers_pyav(source: ErrorCapturingStream) -> bool:
    """Return whether PyAV is there and reads the format better: libsndfile fails on some Ogg FLAC files."""
    return bool(re.match(OGG_FLAC, source.read_head(), re.DOTALL)) and find_spec("av") is not None


def open_with_pyav(source: ErrorCapturingStream, stack: ExitStack, rejection: AudioError) -> Sound:
    names = [name for name, magic in NEEDS_PYAV.items() if re.match(magic, source.read_head(), re.DOTALL)]
    try:
        import av
    except ImportError:
        needs = AudioError(f"{names[0]} needs PyAV; run pip install 'presto-distill[m4a]'") if names else rejection
        raise needs from None
    av.logging.set_level(None)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    try:
        container = stack.enter_context(av.open(source.open_buffered(), container_options=options))
    except (av.FFmpegError, ValueError):
        source.check()
        raise (AudioError(describe_unreadable(f"{names[0]} that is {DAMAGED}")) if names else rejection) from None
    if not container.streams.audio:
        raise AudioError("contains no audio stream, only pictures or text")
    frames = _decode_pyav_frames(container, source)
    first = next(frames, None)
    if first is None:
        raise AudioError("contains no samples")
    declared_length = _read_declared_length(container, first.sample_rate)
    blocks = partial(_join_packets, _convert_pyav_frames(chain([first], frames)))
    return Sound(
        first.sample_rate,
        first.layout.nb_channels,
        lambda size: truncate(declared_length, blocks(size), slack=PACKET_SAMPLES),
    )


def _decode_pyav_frames(container: Any, source: ErrorCapturingStream) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(container.streams.audio[0])
    except (av.FFmpegError, ValueError) as error:
        source.check()
        raise AudioError(describe_unreadable(f"{DAMAGED} ({getattr(error, 'strerror', None) or error})")) from None
    source.check()


def _convert_pyav_frames(frames: Iterable[Any]) -> Iterator[Waveform]:
    seen = set()
    for frame in frames:
        seen.add((frame.sample_rate, frame.layout.nb_channels))
        if len(seen) > 1:
            raise AudioError("changes its sample rate or number of channels midway")
        yield _to_float32(frame)


def _join_packets(packets: Iterable[Waveform], size: int) -> Iterator[Waveform]:
    """Join packets of a few thousand samples into blocks of at least `size` samples; the last may be shorter."""
    pending: list[Waveform] = []
    for packet in packets:
        pending.append(packet)
        if sum(map(len, pending)) >= size:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def _read_declared_length(container: Any, sample_rate_hz: int) -> int:
    """Return the samples declared by an m4a's index, without encoder padding; other containers' may be estimates."""
    stream = container.streams.audio[0]
    if not container.format.name.startswith("mov") or stream.duration is None:
        return UNKNOWN_LENGTH
    return round(stream.duration * stream.time_base * sample_rate_hz)


def _to_float32(frame: Any) -> Waveform:
    """Convert a PyAV frame to [n, channels], with integers scaled to -1 ... 1 as libsndfile does."""
    stored = frame.to_ndarray()
    samples = stored.T if frame.format.is_planar else stored.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) * np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
    with np.errstate(over="ignore"):
        return samples.astype(np.float32)
