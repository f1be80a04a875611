"""Read blocks of samples, as stored, from the bytes of a sound file: with libsndfile, or PyAV for other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import BinaryIO

import soundfile

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.mp3_parts import find_mp3_parts
from presto_core.audio.pyav_decoder import OGG_FLAC, open_with_pyav, prefers_pyav
from presto_core.audio.sound import (
    DAMAGED,
    UNKNOWN_LENGTH,
    AudioError,
    Sound,
    Waveform,
    describe_unreadable,
    truncate,
)
from presto_core.audio.stream_parts import (
    StreamPart,
    find_au_parts,
    find_flac_parts,
    find_ogg_parts,
    find_wav_parts,
    open_part,
)

UNRECOGNISED, UNSUPPORTED, BAD_FILE = 1, 4, 7  # libsndfile's SFE_*; the last: an mp3 too short to decode
# libsndfile reads up to the end that the first header states
PART_FINDERS: dict[bytes, Callable[[ErrorCapturingStream], list[StreamPart]]] = {
    rb"OggS": find_ogg_parts,
    rb"RIFF....WAVE": find_wav_parts,
    rb"\.snd.{8}": find_au_parts,
    rb"fLaC": find_flac_parts,
    rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]": find_mp3_parts,
}


@contextmanager
def open_sound(stream: BinaryIO) -> Iterator[Sound]:
    """Open the first part of seekable content by its format, whatever its name; memory does not grow with its length.

    Raises:
        AudioError: here or while blocks are read: it is not audio, is damaged, or its format needs PyAV.
        OSError: `stream` raised it; a read error is never mistaken for the end of the file.
    """
    with ExitStack() as stack:
        yield _open(ErrorCapturingStream(stream), stack)


def iter_sounds(stream: BinaryIO) -> Iterator[Sound]:
    """Open the parts of seekable content, one after another: read a Sound's blocks before you take the next one.

    Most files have one part. Chained Ogg streams and joined MP3, FLAC and WAV files have several, whose sample rates
    and numbers of channels may differ.

    Raises:
        AudioError, OSError: as `open_sound`.
    """
    source = ErrorCapturingStream(stream)
    parts = _find_parts(source)
    for number, part in enumerate(parts, 1):
        with ExitStack() as stack:
            try:
                sound = _open(source if part is None else open_part(source, part), stack)
            except AudioError as error:
                where = f"part {number} of {len(parts)} is " if len(parts) > 1 else ""
                raise AudioError(f"{where}{error}") from None
            yield sound


def _find_parts(source: ErrorCapturingStream) -> list[StreamPart | None]:
    """Return the parts of a file that need care; None stands for a file that can be read as it is."""
    head = source.read_head()
    for magic, find_parts in PART_FINDERS.items():
        if re.match(magic, head, re.DOTALL):
            parts = find_parts(source)
            if len(parts) > 1 or any(part.is_changed for part in parts):
                return list(parts)
    return [None]


def _open(source: ErrorCapturingStream, stack: ExitStack) -> Sound:
    if prefers_pyav(source):
        try:
            return open_with_pyav(source, stack, AudioError(describe_unreadable(DAMAGED)))
        except AudioError:
            pass  # libsndfile gives the reason
    try:
        return _open_with_libsndfile(source, stack)
    except soundfile.LibsndfileError as error:
        source.check(error)
        rejection = _rejection_error(error, source)
        if error.code not in (UNRECOGNISED, UNSUPPORTED) and not re.match(OGG_FLAC, source.read_head(), re.DOTALL):
            raise rejection from None
        return open_with_pyav(source, stack, rejection)


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
    return Sound(file.samplerate, file.channels, lambda frames: truncate(declared_length, blocks(frames), slack=0))


def _read_libsndfile(file: _ForwardOnly, source: ErrorCapturingStream, frames: int) -> Iterator[Waveform]:
    while True:
        try:
            samples = file.read(frames, dtype="float32", always_2d=True)
        except RuntimeError as error:
            source.check(error)
            raise AudioError(describe_unreadable(getattr(error, "error_string", str(error)))) from None
        source.check()
        if not len(samples):
            return
        yield samples


def _rejection_error(error: soundfile.LibsndfileError, source: ErrorCapturingStream) -> AudioError:
    """Return why libsndfile cannot open the file, without the exception's prefix: it contains a memory address."""
    if not source.read_head():
        return AudioError(describe_unreadable(f"{error.error_string.rstrip('. ')}, it has zero bytes"))
    detail = DAMAGED if error.code == BAD_FILE else error.error_string
    return AudioError(describe_unreadable(detail))
