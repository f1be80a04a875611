"""Find the files of which a FLAC was joined, and whether their headers state fewer samples than there are.

libFLAC stops at the number of samples that the header states, as recorders leave it that were not closed.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.stream_parts import StreamPart, iter_matches, measure, split_at

FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker and the header of its first block
FRAME_START = re.compile(rb"\xff[\xf8\xf9]")
STREAM_INFO_AT, STREAM_INFO_BYTES = 8, 34
TOTAL_AT = STREAM_INFO_AT + 13  # the byte whose lower half, with four bytes more, is the number of samples
TAIL_BYTES = 2**20  # more than a frame: 65535 samples of 8 channels of 24 bits would be larger, but no encoder does it
FRAME_HEADER_BYTES = 16  # the longest, with its checksum
BLOCK_SIZES = {1: 192, **{i: 576 << (i - 2) for i in range(2, 6)}, **{i: 256 << (i - 8) for i in range(8, 16)}}


@dataclass(frozen=True)
class StreamInfo:
    """What the header of a FLAC states.

    Attributes:
        block_size: samples per frame, if all have as many.
        total: number of samples; 0 if unknown.
        channels: number of channels.
        upper: the bits beside those of the total in its first byte.
    """

    block_size: int
    total: int
    channels: int
    upper: int


def find_flac_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the files of which a FLAC was joined, without the number of samples where it is too small."""
    size, reader = measure(source), source.open_buffered()
    reader.seek(start)
    starts = [position for position, _ in iter_matches(reader, FLAC_START)]
    parts = [_make_part(reader, part) for part in split_at([start, *starts[1:]], size)]
    source.check()
    return parts


def _make_part(reader: io.BufferedReader, part: StreamPart) -> StreamPart:
    info = _read_stream_info(reader, part.start)
    if info is None or not info.total or _find_end(reader, part, info) <= info.total:
        return part
    return StreamPart(part.start, part.stop, ((TOTAL_AT, bytes([info.upper, 0, 0, 0, 0])),))


def _read_stream_info(reader: io.BufferedReader, start: int) -> StreamInfo | None:
    reader.seek(start + STREAM_INFO_AT)
    body = reader.read(STREAM_INFO_BYTES)
    if len(body) < STREAM_INFO_BYTES:
        return None
    total = (body[13] & 0x0F) << 32 | int.from_bytes(body[14:18], "big")
    channels = (body[12] >> 1 & 7) + 1
    return StreamInfo(int.from_bytes(body[2:4], "big"), total, channels, body[13] & 0xF0)


def _find_end(reader: io.BufferedReader, part: StreamPart, info: StreamInfo) -> int:
    """Return the number of the sample after the last frame; 0 if none is found."""
    begin = max(part.start, part.stop - TAIL_BYTES)
    reader.seek(begin)
    tail = reader.read(part.stop - begin)
    ends = (parse_frame_end(tail[match.start() :][:FRAME_HEADER_BYTES], info) for match in FRAME_START.finditer(tail))
    return max(filter(None, ends), default=0)


def parse_frame_end(frame: bytes, info: StreamInfo) -> int | None:
    """Return the number of the sample after a frame; None if these bytes are no header of one."""
    frame = frame.ljust(FRAME_HEADER_BYTES, b"\0")
    number, position = _parse_number(frame[4:])
    size_code, rate_code, channel_code = frame[2] >> 4, frame[2] & 15, frame[3] >> 4
    position += 4
    extra = {6: 1, 7: 2}.get(size_code, 0)
    block_size = int.from_bytes(frame[position : position + extra], "big") + 1 if extra else BLOCK_SIZES.get(size_code)
    position += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if number is None or not block_size or rate_code == 15 or channel_code > 10 or frame[3] & 1:
        return None
    channels = 2 if channel_code >= 8 else channel_code + 1
    if channels != info.channels or _crc8(frame[:position]) != frame[position]:
        return None
    return (number if frame[1] & 1 else number * info.block_size) + block_size


def _parse_number(content: bytes) -> tuple[int | None, int]:
    """Return the number that bytes state as UTF-8 would, of up to 36 bits, and how many bytes it takes."""
    if not content or 0x80 <= content[0] < 0xC0 or content[0] == 0xFF:
        return None, 0
    if content[0] < 0x80:
        return content[0], 1
    length = 8 - (~content[0] & 0xFF).bit_length()
    following = content[1:length]
    if len(following) < length - 1 or any(byte & 0xC0 != 0x80 for byte in following):
        return None, 0
    number = content[0] & (0x7F >> length)
    for byte in following:
        number = number << 6 | byte & 0x3F
    return number, length


def _crc8(content: bytes) -> int:
    """Return the checksum of FLAC's frame headers: polynomial x^8 + x^2 + x + 1."""
    checksum = 0
    for byte in content:
        checksum ^= byte
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x07) & 0xFF if checksum & 0x80 else checksum << 1
    return checksum
