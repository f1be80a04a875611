"""Read blocks of samples, as stored, from the bytes of a sound file: with libsndfile, or PyAV for other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import BinaryIO

import soundfile

from presto_core.audio.atom_parts import find_atom_parts
from presto_core.audio.chunk_parts import CHUNK_FORMATS, find_au_parts, find_chunk_parts
from presto_core.audio.error_capturing_stream import HEAD_BYTES, ErrorCapturingStream
from presto_core.audio.flac_parts import find_flac_parts
from presto_core.audio.mp3_parts import find_mp3_parts, skip_tags
from presto_core.audio.pyav_decoder import NEEDS_PYAV, OGG_FLAC, PACKET_SAMPLES, open_with_pyav, prefers_pyav
from presto_core.audio.sound import (
    DAMAGED,
    UNKNOWN_LENGTH,
    AudioError,
    Sound,
    Waveform,
    check_length,
    describe_unreadable,
    truncate,
)
from presto_core.audio.stream_parts import ASF_START, StreamPart, find_asf_parts, find_ogg_parts, measure, open_part

UNRECOGNISED, UNSUPPORTED, BAD_FILE = 1, 4, 7  # libsndfile's SFE_*; the last: an mp3 too short to decode
# decoders read up to the end that the first header states
PART_FINDERS: dict[bytes, Callable[[ErrorCapturingStream, int], list[StreamPart]]] = {
    rb"OggS": find_ogg_parts,
    rb"fLaC": find_flac_parts,
    rb"\.snd.{8}": find_au_parts,
    rb"....ftyp": find_atom_parts,
    re.escape(ASF_START): find_asf_parts,
    **{layout.magic.pattern: find_chunk_parts for layout in CHUNK_FORMATS},
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]": find_mp3_parts,
}
MAX_MISSING_SHARE = 0.01  # of the samples that a file states
NEEDS_PYAV_MAGIC = re.compile(b"|".join(NEEDS_PYAV.values()), re.DOTALL)


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
    is_plain = len(parts) == 1 and parts[0] == StreamPart(0, measure(source), min_samples=parts[0].min_samples)
    for number, part in enumerate(parts, 1):
        with ExitStack() as stack:
            try:
                sound = _open(source if is_plain else open_part(source, part), stack)
            except AudioError as error:
                where = f"part {number} of {len(parts)} is " if len(parts) > 1 else ""
                raise AudioError(f"{where}{error}") from None
            yield _check_length(sound, part.min_samples)


def _find_parts(source: ErrorCapturingStream) -> list[StreamPart]:
    """Return the parts of a file, at least one."""
    start, head = _skip_tag(source)
    find_parts = next((find for magic, find in PART_FINDERS.items() if re.match(magic, head, re.DOTALL)), None)
    if find_parts is None and (start or head.startswith(b"ID3")) and not NEEDS_PYAV_MAGIC.match(head):
        find_parts = find_mp3_parts  # which may have anything between tags and frames
    parts = find_parts(source, start) if find_parts else [StreamPart(start, measure(source))]
    return parts or [StreamPart(0, measure(source))]


def _check_length(sound: Sound, min_samples: int) -> Sound:
    """Return a sound that raises AudioError at its end if more than a hundredth of its stated samples is missing."""
    if not min_samples:
        return sound
    slack = max(round(MAX_MISSING_SHARE * min_samples), PACKET_SAMPLES)
    return replace(sound, iter_blocks=lambda frames: check_length(min_samples, sound.iter_blocks(frames), slack=slack))


def _skip_tag(source: ErrorCapturingStream) -> tuple[int, bytes]:
    """Return where a file begins after ID3 tags, which some programs put before any format, and its first bytes."""
    if not source.read_head().startswith(b"ID3"):
        return 0, source.read_head()
    reader = source.open_buffered()
    start = skip_tags(reader, 0)
    reader.seek(start)
    return start, reader.read(HEAD_BYTES)


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
