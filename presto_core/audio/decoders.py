"""Read blocks of samples, as stored, from the bytes of a sound file: with libsndfile, or PyAV for other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.errors import UserError

Waveform = npt.NDArray[np.float32]

UNKNOWN_LENGTH = 2**62  # libsndfile returns 2^63 - 1 for a FLAC that does not state its length
PACKET_SAMPLES = 4096  # an m4a states its length in milliseconds, and players differ on the ends
UNRECOGNISED, UNSUPPORTED, BAD_FILE = 1, 4, 7  # libsndfile's SFE_*; the last: an mp3 too short to decode
DAMAGED = "damaged or truncated"
NEEDS_PYAV = {
    "m4a/AAC": rb"....ftyp|\xff[\xf0\xf1\xf8\xf9]|ADIF",
    "WebM or Matroska": rb"\x1aE\xdf\xa3",
    "WMA": rb"0&\xb2u\x8ef\xcf\x11",
    "WavPack": rb"wvpk",
    "Monkey's Audio": rb"MAC ",
}
# FFmpeg also follows playlists to other files and hosts: allow only plain audio containers
DEMUXERS = "aac,aiff,ape,asf,caf,flac,matroska,mov,mp3,ogg,wav,webm,wv"


class AudioError(UserError):
    """A file cannot be used as music; the message gives the reason and follows the file's name."""


@dataclass(frozen=True)
class Sound:
    """An open sound file.

    Attributes:
        iter_blocks: approximate frames per block -> blocks [n, channels] float32 as stored; call it once.
    """

    sample_rate_hz: int
    channels: int
    iter_blocks: Callable[[int], Iterator[Waveform]]


@contextmanager
def open_sound(stream: BinaryIO) -> Iterator[Sound]:
    """Open seekable content by its format, whatever its name; memory does not grow with its length.

    Raises:
        AudioError: here or while blocks are read: it is not audio, is damaged, or its format needs PyAV.
        OSError: `stream` raised it; a read error is never mistaken for the end of the file.
    """
    source = ErrorCapturingStream(stream)
    with ExitStack() as stack:
        try:
            sound = _open_with_libsndfile(source, stack)
        except soundfile.LibsndfileError as error:
            source.check(error)
            rejection = _rejection_error(error, source)
            if error.code not in (UNRECOGNISED, UNSUPPORTED):
                raise rejection from None
            sound = _open_with_pyav(source, stack, rejection)
        yield sound


class _ForwardOnly(soundfile.SoundFile):  # type: ignore[misc]
    """A file read forward only: soundfile otherwise seeks after every block, which a FLAC of unknown length refuses."""

    def seekable(self) -> bool:
        return False


def _open_with_libsndfile(source: ErrorCapturingStream, stack: ExitStack) -> Sound:
    file = stack.enter_context(_ForwardOnly(source.open_for_libsndfile(), closefd=False))
    file.seek(0)  # as soundfile.read does: the last bits of an mp3 depend on it
    # libsndfile already limits the length of other formats to the file's size
    declared_length = file.frames if file.format == "FLAC" else UNKNOWN_LENGTH
    blocks = partial(_read_libsndfile, file, source)
    return Sound(file.samplerate, file.channels, lambda frames: _truncate(declared_length, blocks(frames), slack=0))


def _read_libsndfile(file: _ForwardOnly, source: ErrorCapturingStream, frames: int) -> Iterator[Waveform]:
    while True:
        try:
            samples = file.read(frames, dtype="float32", always_2d=True)
        except RuntimeError as error:
            source.check(error)
            raise AudioError(_unreadable_message(getattr(error, "error_string", str(error)))) from None
        source.check()
        if not len(samples):
            return
        yield samples


def _truncate(declared_length: int, blocks: Iterator[Waveform], *, slack: int) -> Iterator[Waveform]:
    """Yield the first `declared_length` samples; raise AudioError if more than `slack` of them are missing."""
    read = 0
    for block in blocks:
        if read < declared_length:
            yield block[: declared_length - read]
        read += len(block)
    if read + slack < declared_length < UNKNOWN_LENGTH:
        raise AudioError(f"is truncated: {read} of {declared_length} samples")


def _rejection_error(error: soundfile.LibsndfileError, source: ErrorCapturingStream) -> AudioError:
    """Return why libsndfile cannot open the file, without the exception's prefix: it contains a memory address."""
    if not source.read_head():
        return AudioError(_unreadable_message(f"{error.error_string.rstrip('. ')}, it has zero bytes"))
    detail = DAMAGED if error.code == BAD_FILE else error.error_string
    return AudioError(_unreadable_message(detail))


def _unreadable_message(detail: str) -> str:
    return f"not readable as audio: {' '.join(detail.removeprefix('Error : ').split())}"


def _open_with_pyav(source: ErrorCapturingStream, stack: ExitStack, rejection: AudioError) -> Sound:
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
        raise (AudioError(_unreadable_message(f"{names[0]} that is {DAMAGED}")) if names else rejection) from None
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
        lambda size: _truncate(declared_length, blocks(size), slack=PACKET_SAMPLES),
    )


def _decode_pyav_frames(container: Any, source: ErrorCapturingStream) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(container.streams.audio[0])
    except (av.FFmpegError, ValueError) as error:
        source.check()
        raise AudioError(_unreadable_message(f"{DAMAGED} ({getattr(error, 'strerror', None) or error})")) from None
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
