"""Find the files of which an m4a or mp4 was joined: FFmpeg reads the first index alone."""

from __future__ import annotations

import struct

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.stream_parts import StreamPart, measure, split_at

WIDE_SIZE, TO_THE_END = 1, 0  # what the 32 bits of a size mean


def find_atom_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the files from `start` on: each begins with an atom `ftyp`."""
    size, reader = measure(source), source.open_buffered()
    starts, position = list[int](), start
    while position + 8 <= size:
        reader.seek(position)
        length, name, wide = struct.unpack(">I4sQ", reader.read(16).ljust(16, b"\0"))
        if name == b"ftyp":
            starts.append(position)
        length = {WIDE_SIZE: wide, TO_THE_END: size - position}.get(length, length)
        if length < 8:
            break
        position += length
    source.check()
    return split_at(starts, size)
