"""Find the parts of an MP3 file frame by frame: joined files, changes of format, gaps, and headers with a wrong length.

A Xing or Info frame states how many frames follow, and decoders stop there. It describes only the first of several
joined files, and programs that write to a pipe leave it at 0.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.stream_parts import StreamPart, measure

BITRATES_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version's bits
FRAME_SAMPLES = {3: 1152, 2: 576, 0: 576}
LAYER_3 = 1
SYNC_BYTES = 2**16  # read at once to look for the next frame after damage
# a decoder that looks for the next frame beyond more bytes than these may take others for one, or give up
MAX_LOOSE_BYTES = 32
INFO_BYTES = 64  # of a frame: enough for the counts of its Xing, Info or VBRI header
COUNT_TOLERANCE = 1  # encoders differ on whether the Info frame itself counts
HAS_COUNT = 1  # among the flags of a Xing header
PREFIX_BITRATE = 9  # index of a rate whose frames hold an Info header in every format


@dataclass(frozen=True)
class FrameHeader:
    """The header of an MP3 frame; `size` in bytes, `side_bytes` between header and data."""

    version: int
    rate_hz: int
    is_mono: bool
    size: int
    side_bytes: int

    @property
    def format(self) -> tuple[int, int, bool]:
        return self.version, self.rate_hz, self.is_mono


@dataclass(frozen=True)
class InfoFrame:
    """A frame that describes the following ones.

    Attributes:
        position: of its number of frames, in bytes from the frame's start; of its flags if it has no number.
        declared_frames: its number of frames, or None.
    """

    position: int
    declared_frames: int | None


@dataclass
class Mp3Part:
    """Frames of one format after at most one frame that describes them.

    Attributes:
        start: position of the first frame.
        header: first four bytes of the first frame.
        first_size: bytes of the first frame.
        frames: number of whole frames of music.
        stop: position after the last frame.
    """

    start: int
    format: tuple[int, int, bool]
    header: bytes
    first_size: int
    info: InfoFrame | None = None
    frames: int = 0
    stop: int = 0


def find_mp3_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the parts of an MP3, each with its true number of frames where decoders would take a smaller one.

    They take the number that a Xing, Info or VBRI frame states, otherwise what the file's size and its first frame's
    bit rate suggest. The first part has the tags before `start`, which decoders skip.
    """
    size, reader = measure(source), source.open_buffered()
    music = skip_tags(reader, start)
    parts = [part for part in _walk_frames(reader, music, size) if part.frames]
    source.check()
    starts = [part.start for part in parts]
    if parts and starts[0] - music <= MAX_LOOSE_BYTES:
        starts[0] = 0
    # a decoder fails on what follows the last frame if it is long and no tag, such as zeros
    stops = [
        stop if stop - skip_tags(reader, part.stop) <= MAX_LOOSE_BYTES else part.stop
        for part, stop in zip(parts, [*starts[1:], size])
    ]
    return [_make_stream_part(part, start, stop) for part, start, stop in zip(parts, starts, stops)]


def _make_stream_part(part: Mp3Part, start: int, stop: int) -> StreamPart:
    info, count = part.info, struct.pack(">I", part.frames)
    expected_frames = (stop - part.start) / part.first_size
    if info is not None and info.declared_frames is not None:
        expected_frames = info.declared_frames
    samples = part.frames * FRAME_SAMPLES[part.format[0]]
    if part.frames <= expected_frames + COUNT_TOLERANCE:
        return StreamPart(start, stop, min_samples=samples)
    if info is None:
        return StreamPart(part.start, stop, prefix=_make_info_frame(part), min_samples=samples)
    # without a count of its own, this one replaces the other fields, and zeros follow it, which are no LAME tag
    patch = count if info.declared_frames is not None else struct.pack(">I", HAS_COUNT) + count + bytes(24)
    return StreamPart(start, stop, ((part.start - start + info.position, patch),), min_samples=samples)


def _make_info_frame(part: Mp3Part) -> bytes:
    """Return a frame of the part's format that states its number of frames."""
    first, second, third, fourth = part.header
    header = bytes([first, second | 1, PREFIX_BITRATE << 4 | third & 0b1100, fourth])
    frame = parse_header(header)
    assert frame is not None  # the header of a valid frame with another bit rate
    content = header + bytes(frame.side_bytes) + b"Xing" + struct.pack(">II", HAS_COUNT, part.frames)
    return content.ljust(frame.size, b"\0")


def _walk_frames(reader: io.BufferedReader, start: int, size: int) -> list[Mp3Part]:
    parts: list[Mp3Part] = []
    position, is_beyond_gap = _find_frame(reader, start), False
    while 0 <= position < size:
        reader.seek(position)
        frame = reader.read(INFO_BYTES)
        header = parse_header(frame)
        is_other = header is not None and bool(parts) and header.format != parts[-1].format
        if header is None or (is_other and not _is_followed(reader, position, header)):
            following = _find_frame(reader, max(skip_tags(reader, position), position + 1))
            is_beyond_gap = following - position > MAX_LOOSE_BYTES
            position = following
            continue
        info = _parse_info_frame(frame, header)
        if info is not None or is_other or is_beyond_gap or not parts:
            parts.append(Mp3Part(position, header.format, frame[:4], header.size, info))
        is_beyond_gap = False
        position += header.size
        parts[-1].stop = min(position, size)
        if info is None and position <= size:
            parts[-1].frames += 1
    return parts


def parse_header(frame: bytes) -> FrameHeader | None:
    """Return the header of a layer III frame with a stated bit rate; None if these bytes are no such frame."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    version, layer = frame[1] >> 3 & 3, frame[1] >> 1 & 3
    bitrate, rate = frame[2] >> 4, frame[2] >> 2 & 3
    if version == 1 or layer != LAYER_3 or bitrate in (0, 15) or rate == 3:
        return None
    is_first_version, is_mono = version == 3, frame[3] >> 6 == 3
    rate_hz, kbps = RATES_HZ[version][rate], BITRATES_KBPS[1 if is_first_version else 2][bitrate]
    size = (144000 if is_first_version else 72000) * kbps // rate_hz + (frame[2] >> 1 & 1)
    side_bytes = (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)
    return FrameHeader(version, rate_hz, is_mono, size, side_bytes)


def _parse_info_frame(frame: bytes, header: FrameHeader) -> InfoFrame | None:
    """Return what a Xing, Info or VBRI frame states; None for a frame of music."""
    start = 4 + header.side_bytes
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return InfoFrame(50, struct.unpack_from(">I", frame, 50)[0])
    if frame[start : start + 4] not in (b"Xing", b"Info") or len(frame) < start + 12:
        return None
    flags, count = struct.unpack_from(">II", frame, start + 4)
    return InfoFrame(start + 8, count) if flags & HAS_COUNT else InfoFrame(start + 4, None)


def skip_tags(reader: io.BufferedReader, position: int) -> int:
    """Return the position after ID3 and APE tags."""
    while True:
        reader.seek(position)
        head = reader.read(32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:  # else it is damaged
            length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            position += 10 + length + (10 if head[5] & 0x10 else 0)
        elif head[:3] == b"TAG" and parse_header(head) is None:
            position += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            is_header = struct.unpack_from("<I", head, 20)[0] & 1 << 29
            position += 32 + (struct.unpack_from("<I", head, 12)[0] if is_header else 0)
        else:
            return position


def _find_frame(reader: io.BufferedReader, position: int) -> int:
    """Return the position of the next frame that another one follows; -1 if there is none."""
    while True:
        reader.seek(position)
        content, i = reader.read(SYNC_BYTES), -1
        while (i := content.find(b"\xff", i + 1)) >= 0:
            header = parse_header(content[i : i + 4])
            if header is not None and _is_followed(reader, position + i, header):
                return position + i
        if len(content) < SYNC_BYTES:
            return -1
        position += SYNC_BYTES - 3


def _is_followed(reader: io.BufferedReader, position: int, header: FrameHeader) -> bool:
    """Return whether a frame of the same format follows a frame."""
    reader.seek(position + header.size)
    following = parse_header(reader.read(4))
    return following is not None and following.format == header.format
