"""Bytes of a sound file -> blocks of samples as they are stored: libsndfile first, PyAV for what it does not know."""

from __future__ import annotations

import io
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

from presto_core.errors import UserError

Waveform = npt.NDArray[np.float32]

READ_AHEAD_BYTES = (
    2**20
)  # bytes: decoders ask for a few KiB at a time, each of which would be a request to an object store
UNKNOWN_LENGTH = 2**62  # libsndfile says 2^63 - 1 of a FLAC that does not state its length
PACKET_SAMPLES = 4096  # an m4a states its length in milliseconds, and players differ on the ends
UNRECOGNISED, SYSTEM, UNSUPPORTED, BAD_FILE = 1, 2, 4, 7  # libsndfile's SFE_*; the last: an mp3 too short to decode
DAMAGED = "damaged, or cut short"
NEEDS_PYAV = {
    "m4a/AAC": rb"....ftyp|\xff[\xf0\xf1\xf8\xf9]|ADIF",
    "WebM or Matroska": rb"\x1aE\xdf\xa3",
    "WMA": rb"0&\xb2u\x8ef\xcf\x11",
    "WavPack": rb"wvpk",
    "Monkey's Audio": rb"MAC ",
}
# FFmpeg would also follow playlists, to other files and hosts: only plain containers of sound may be opened
DEMUXERS = "aac,aiff,ape,asf,caf,flac,matroska,mov,mp3,ogg,wav,webm,wv"


class AudioError(UserError):
    """A file that cannot be used as music; the message says why."""


@dataclass(frozen=True)
class Sound:
    """An opened file.

    Attributes:
        blocks: about how many frames a block holds -> blocks [n, channels] float32 as stored; to be called once.
    """

    sample_rate_hz: int
    channels: int
    iter_blocks: Callable[[int], Iterator[Waveform]]


@contextmanager
def open_sound(stream: BinaryIO) -> Iterator[Sound]:
    """Open seekable content by what it is, whatever its name; memory does not grow with its length.

    Raises:
        AudioError: here or while the blocks are read: no audio, damaged, or of a format that needs PyAV.
        OSError: what `stream` itself raises; it is never taken for the end of the file.
    """
    source = _ErrorCapturingStream(stream)
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


class _ErrorCapturingStream(io.RawIOBase):
    """The stream, its errors kept: C code that reads through a callback would swallow them."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            content = self.stream.read(len(buffer))
        except Exception as error:
            self.error = error
            return 0
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        """A reader that is let go closes what it reads from; the stream is the caller's, and is read again."""

    def read_head(self) -> bytes:
        self.seek(0)
        return self.read(16) or b""

    def open_buffered(self) -> io.BufferedReader:
        """The content from its start, read ahead."""
        self.seek(0)
        return io.BufferedReader(self, READ_AHEAD_BYTES)

    def open_for_libsndfile(self) -> int | io.BufferedReader:
        """The content from its start; of a plain file the descriptor, which is read without us in half the time."""
        if not isinstance(self.stream, io.FileIO):
            return self.open_buffered()
        self.seek(0)
        return self.stream.fileno()

    def check(self, error: Exception | None = None) -> None:
        """Raise what the stream raised, or libsndfile's word for it."""
        if getattr(error, "code", None) == SYSTEM:
            raise OSError(f"cannot be read: {error}") from None
        if self.error is not None:
            raise self.error


class _ForwardOnly(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is only read on: soundfile else seeks after every block, which a FLAC of unknown length refuses."""

    def seekable(self) -> bool:
        return False


def _open_with_libsndfile(source: _ErrorCapturingStream, stack: ExitStack) -> Sound:
    file = stack.enter_context(_ForwardOnly(source.open_for_libsndfile(), closefd=False))
    file.seek(0)  # as soundfile.read does: an mp3's last bits depend on it
    declared_length = (
        file.frames if file.format == "FLAC" else UNKNOWN_LENGTH
    )  # others: already what the file's size allows
    blocks = partial(_read_libsndfile, file, source)
    return Sound(file.samplerate, file.channels, lambda frames: _truncate(declared_length, blocks(frames), slack=0))


def _read_libsndfile(file: _ForwardOnly, source: _ErrorCapturingStream, frames: int) -> Iterator[Waveform]:
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
    """The first `stated` samples; fewer, by more than `slack`, are an AudioError."""
    read = 0
    for block in blocks:
        if read < declared_length:
            yield block[: declared_length - read]
        read += len(block)
    if read + slack < declared_length < UNKNOWN_LENGTH:
        raise AudioError(f"is cut short: {read} of {declared_length} samples")


def _rejection_error(error: soundfile.LibsndfileError, source: _ErrorCapturingStream) -> AudioError:
    """Why libsndfile opens no such file, without the exception's prefix: it names the stream by its address."""
    if not source.read_head():
        return AudioError(_unreadable_message(f"{error.error_string.rstrip('. ')}, it holds zero bytes"))
    detail = DAMAGED if error.code == BAD_FILE else error.error_string
    return AudioError(_unreadable_message(detail))


def _unreadable_message(detail: str) -> str:
    return f"not readable as audio: {' '.join(detail.removeprefix('Error : ').split())}"


def _open_with_pyav(source: _ErrorCapturingStream, stack: ExitStack, rejection: AudioError) -> Sound:
    names = [name for name, magic in NEEDS_PYAV.items() if re.match(magic, source.read_head(), re.DOTALL)]
    try:
        import av
    except ImportError:
        needs = AudioError(f"{names[0]} needs PyAV: pip install 'presto-distill[m4a]'") if names else rejection
        raise needs from None
    av.logging.set_level(None)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    try:
        container = stack.enter_context(av.open(source.open_buffered(), container_options=options))
    except (av.FFmpegError, ValueError):
        source.check()
        raise (AudioError(_unreadable_message(f"{names[0]} that is {DAMAGED}")) if names else rejection) from None
    if not container.streams.audio:
        raise AudioError("holds no sound, only pictures or text")
    frames = _decode_pyav_frames(container, source)
    first = next(frames, None)
    if first is None:
        raise AudioError("holds no samples")
    declared_length = _read_declared_length(container, first.sample_rate)
    blocks = partial(_join_packets, _convert_pyav_frames(chain([first], frames)))
    return Sound(
        first.sample_rate,
        first.layout.nb_channels,
        lambda size: _truncate(declared_length, blocks(size), slack=PACKET_SAMPLES),
    )


def _decode_pyav_frames(container: Any, source: _ErrorCapturingStream) -> Iterator[Any]:
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
            raise AudioError("changes its sample rate or its channels half way")
        yield _to_float32(frame)


def _join_packets(packets: Iterable[Waveform], size: int) -> Iterator[Waveform]:
    """A codec's packets of some thousand samples, together at least `size` long but for the last."""
    pending: list[Waveform] = []
    for packet in packets:
        pending.append(packet)
        if sum(map(len, pending)) >= size:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def _read_declared_length(container: Any, sample_rate_hz: int) -> int:
    """Samples that an m4a's index states, its encoder's padding not counted; other containers' may be mere guesses."""
    stream = container.streams.audio[0]
    if not container.format.name.startswith("mov") or stream.duration is None:
        return UNKNOWN_LENGTH
    return round(stream.duration * stream.time_base * sample_rate_hz)


def _to_float32(frame: Any) -> Waveform:
    """A PyAV frame as [n, channels], integers scaled to -1 ... 1 as libsndfile does."""
    stored = frame.to_ndarray()
    samples = stored.T if frame.format.is_planar else stored.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) * np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
    with np.errstate(over="ignore"):
        return samples.astype(np.float32)
