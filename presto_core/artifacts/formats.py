"""Check that bytes match their claimed format; sizes in headers are compared with the file before they are used."""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from presto_core.artifacts.library_checks import UnsafeArtifactError as UnsafeArtifactError
from presto_core.artifacts.library_checks import check_with_pillow, check_with_safetensors, check_with_soundfile

SAFETENSORS_HEADER_LIMIT = 100_000_000  # of the format itself
JSON_LIMIT, YAML_LIMIT, LINE_LIMIT = 256 * 2**20, 4 * 2**20, 4 * 2**20
YAML_DEPTH = 60
PNG_SIDE_LIMIT = 20_000
PARQUET_FOOTER_LIMIT = 256 * 2**20
PARQUET_ROWS_LIMIT, ROWS_PER_BYTE = 100_000_000, 1000
DECODED_LIMIT = 16 * 2**30  # bytes of decoded content, whatever the file's size
DECODED_RATIO, DECODED_FREE = 200, 256 * 2**20  # bytes per byte of the file; and what any file may have
# least bytes of a decoded value by its physical type; a type of fixed length tells it
_COLUMN_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
PNG_PIXELS_LIMIT = 64_000_000
PNG_TEXT_LIMIT = 2**20  # of a compressed text or colour profile
_PICKLE_OR_ARCHIVE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x1f\x8b", b"\x7fELF", b"MZ")
_DTYPE_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_DTYPE_BITS |= {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)}
_DTYPE_BITS |= {"F16": 16, "BF16": 16, "F32": 32, "F64": 64}
_DTYPE_BITS |= {f"F8_{kind}": 8 for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}


def check_safetensors(stream: BinaryIO, size: int) -> None:
    """Check for a header of bounded size and tensors of known types that fill the rest without gap or overlap."""
    _check_not_executable(stream)
    if size < 8:
        raise UnsafeArtifactError(f"it has {size} bytes, too few for a safetensors file")
    length = struct.unpack("<Q", stream.read(8))[0]
    if length > min(SAFETENSORS_HEADER_LIMIT, size - 8):
        raise UnsafeArtifactError(
            f"its header claims {length} bytes of a file of {size}, and at most {SAFETENSORS_HEADER_LIMIT} are allowed"
        )
    content = stream.read(length)
    header = parse_json(content, "its header")
    if not isinstance(header, dict):
        raise UnsafeArtifactError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UnsafeArtifactError("its __metadata__ is not a mapping of strings")
    end = 0
    for start, stop, name in sorted(_parse_span(name, entry) for name, entry in header.items()):
        if start != end:
            raise UnsafeArtifactError(f"tensor {name!r} starts at byte {start}, the one before ends at {end}")
        end = stop
    if end != size - 8 - length:
        raise UnsafeArtifactError(f"its tensors end at byte {end} of {size - 8 - length}")
    check_with_safetensors(content, size)


def _parse_span(name: str, entry: Any) -> tuple[int, int, str]:
    """Return (start, end, name) of a tensor's bytes."""
    try:
        bits, shape, (start, stop) = _DTYPE_BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise UnsafeArtifactError(f"tensor {name[:80]!r} has no valid dtype, shape and data_offsets") from None
    numbers = [*shape, start, stop] if isinstance(shape, list) else [None]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise UnsafeArtifactError(f"tensor {name[:80]!r} has an invalid shape or offsets")
    if math.prod(shape) * bits != (stop - start) * 8:
        raise UnsafeArtifactError(f"tensor {name[:80]!r} of shape {shape} does not occupy {stop - start} bytes")
    return start, stop, name


def check_parquet(stream: BinaryIO, size: int) -> None:
    """Check for magic bytes at both ends, a readable footer, and row groups inside the file."""
    _check_not_executable(stream)
    if size < 12 or stream.read(4) != b"PAR1":
        raise UnsafeArtifactError("it is not a Parquet file")
    stream.seek(size - 8)
    length, magic = struct.unpack("<I4s", stream.read(8))
    if magic != b"PAR1" or length > min(size - 12, PARQUET_FOOTER_LIMIT):
        raise UnsafeArtifactError(f"its footer claims {length} bytes of {size}, or it is truncated")
    stream.seek(0)
    try:
        metadata = pq.ParquetFile(stream).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        spans = [_column_span(group.column(number)) for group in groups for number in range(group.num_columns)]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnsafeArtifactError(f"its footer cannot be read: {' '.join(str(error).split())[:200]}") from None
    if any(not 0 <= start <= end <= size for start, end in spans):
        raise UnsafeArtifactError("a column lies outside the file")
    check_decoded_parquet(metadata, size)


def check_decoded_parquet(metadata: pq.FileMetaData, size: int) -> None:
    """Check that a Parquet file of `size` bytes has no more rows and bytes, when decoded, than are allowed.

    Raises:
        UnsafeArtifactError: it has.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    decoded, rows = sum(group.total_byte_size for group in groups), sum(group.num_rows for group in groups)
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    width = sum(_COLUMN_BYTES.get(column.physical_type) or column.length for column in columns)
    check_decoded_size(max(decoded, rows * width), size)  # repeated values take next to nothing in the file
    if rows != metadata.num_rows or not 0 <= rows <= min(PARQUET_ROWS_LIMIT, ROWS_PER_BYTE * size):
        raise UnsafeArtifactError(f"it claims {metadata.num_rows} rows in {size} bytes, more than are allowed")


def check_decoded_size(decoded: int, size: int) -> None:
    """Check what headers say of the size of decoded content; raises UnsafeArtifactError."""
    allowed = min(DECODED_LIMIT, max(DECODED_RATIO * size, DECODED_FREE))
    if not 0 <= decoded <= allowed:
        raise UnsafeArtifactError(
            f"it claims {decoded} bytes when decoded, of {size} in the file; {allowed} are allowed"
        )


def _column_span(column: Any) -> tuple[int, int]:
    start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    return start, start + column.total_compressed_size


def check_json(stream: BinaryIO, size: int) -> None:
    _check_not_executable(stream)
    _check_size(size, JSON_LIMIT)
    parse_json(stream.read(), "it")


def check_json_lines(stream: BinaryIO, size: int) -> None:
    _check_not_executable(stream)
    number, rest, more = 0, b"", True
    while more:  # Arrow files have no readline
        block = stream.read(LINE_LIMIT)
        more = bool(block)
        *lines, rest = [*(rest + block).split(b"\n"), *([] if more else [b""])]
        _check_size(len(rest), LINE_LIMIT)
        for line in lines:
            number += 1
            if line.strip():
                parse_json(line, f"line {number}")


def check_yaml(stream: BinaryIO, size: int) -> None:
    """Check for plain settings without tags, which can name Python objects, or aliases, which can expand endlessly."""
    _check_not_executable(stream)
    _check_size(size, YAML_LIMIT)
    try:
        depth = 0
        for event in yaml.parse(stream.read().decode(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise UnsafeArtifactError(f"it is nested more than {YAML_DEPTH} levels deep")
            if isinstance(event, yaml.AliasEvent):
                raise UnsafeArtifactError("it has YAML aliases, which can expand without limit")
            if tag := getattr(event, "tag", None):
                raise UnsafeArtifactError(f"it has the YAML tag {str(tag)[:80]!r}; settings need none")
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UnsafeArtifactError(f"it is not YAML: {' '.join(str(error).split())[:200]}") from None


def check_wav(stream: BinaryIO, size: int) -> None:
    """Check for RIFF chunks inside the file: a PCM or float format, and samples."""
    head = stream.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise UnsafeArtifactError("it is not a WAV file")
    if struct.unpack("<I", head[4:8])[0] + 8 != size:
        raise UnsafeArtifactError(f"the size in its RIFF header differs from the file's {size} bytes")
    position, chunk_ids = 12, set()
    while position < size:
        stream.seek(position)
        header = stream.read(8)
        length = struct.unpack("<I", header[4:])[0] if len(header) == 8 else size
        if position + 8 + length > size:
            raise UnsafeArtifactError(f"its chunk {header[:4]!r} extends beyond the file")
        if header[:4] == b"fmt ":
            _check_wav_format(stream.read(length))
        chunk_ids.add(header[:4])
        position += 8 + length + length % 2
    if not {b"fmt ", b"data"} <= chunk_ids:
        raise UnsafeArtifactError("it has no fmt or no data chunk")
    check_with_soundfile(stream, size)


def _check_wav_format(content: bytes) -> None:
    if len(content) < 16:
        raise UnsafeArtifactError("its fmt chunk is truncated")
    code, channels, rate_hz = struct.unpack("<HHI", content[:8])
    if code not in (1, 3, 0xFFFE) or not 1 <= channels <= 64 or not 1 <= rate_hz <= 1_000_000:
        raise UnsafeArtifactError(f"its format (code {code}, {channels} channels, {rate_hz} Hz) is not allowed")


def check_png(stream: BinaryIO, size: int) -> None:
    """Check for the signature, chunks with valid checksums, a bounded image size, and no bytes after the end.

    The compressed data must have the size that the header implies.
    """
    if stream.read(8) != b"\x89PNG\r\n\x1a\n":
        raise UnsafeArtifactError("it is not a PNG file")
    position, kind, pixels = 8, b"", zlib.decompressobj()
    needed = found = 0
    while kind != b"IEND":
        stream.seek(position)
        header = stream.read(8)
        length = struct.unpack(">I", header[:4])[0] if len(header) == 8 else size
        if position + 12 + length > size:
            raise UnsafeArtifactError("one of its chunks extends beyond the file, or its end is missing")
        kind, body = header[4:], stream.read(length)
        if zlib.crc32(kind + body) != struct.unpack(">I", stream.read(4))[0]:
            raise UnsafeArtifactError(f"the checksum of its chunk {kind!r} is wrong")
        if (position == 8) != (kind == b"IHDR"):
            raise UnsafeArtifactError("its header is not the first chunk, or occurs twice")
        if kind == b"IHDR":
            needed = _measure_png(body)
        elif kind == b"IDAT":
            found += _count_inflated(pixels, body, limit=needed - found)
        elif kind in (b"zTXt", b"iTXt", b"iCCP"):
            _check_png_text(kind, body)
        position += 12 + length
    if position != size:
        raise UnsafeArtifactError(f"{size - position} bytes follow the end of the image")
    if found < needed:
        raise UnsafeArtifactError(f"its image has {found} bytes, its header needs {needed}")
    check_with_pillow(stream)


def _measure_png(header: bytes) -> int:
    """Bytes of the decoded image, with one for the filter of each row: at least, if it is interlaced."""
    if len(header) != 13:
        raise UnsafeArtifactError("its header is not of 13 bytes")
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    if not all(0 < side <= PNG_SIDE_LIMIT for side in (width, height)) or width * height > PNG_PIXELS_LIMIT:
        raise UnsafeArtifactError(
            f"its width and height are not both between 1 and {PNG_SIDE_LIMIT}, or {PNG_PIXELS_LIMIT} in all"
        )
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if channels is None or depth not in (1, 2, 4, 8, 16) or header[10:12] != b"\0\0" or header[12] != 0:
        raise UnsafeArtifactError(f"its colour type {colour}, depth {depth} or interlacing is not allowed")
    return height * (1 + (width * channels * depth + 7) // 8)


def _count_inflated(inflate: Any, body: bytes, *, limit: int) -> int:
    """Bytes that a part of a compressed stream gives; never more than one above the limit is held."""
    count = 0
    while not inflate.eof:
        most = min(2**20, limit - count + 1)
        part = inflate.decompress(body, most)
        count, body = count + len(part), inflate.unconsumed_tail
        if count > limit:
            raise UnsafeArtifactError(f"a compressed part of it gives more than the {limit} bytes that it may")
        if len(part) < most:  # all input is used, and all that it gives
            break
    return count


def _check_png_text(kind: bytes, body: bytes) -> None:
    _, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        is_compressed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_compressed, rest = True, rest[1:]
    if is_compressed:
        _count_inflated(zlib.decompressobj(), rest, limit=PNG_TEXT_LIMIT)


def parse_json(content: bytes, what: str) -> Any:
    """Parse JSON that anyone may have written.

    Raises:
        UnsafeArtifactError: it is no JSON, is nested too deep, or an object has a key twice; starts with `what`.
    """

    def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise UnsafeArtifactError(f"{what} has duplicate keys")
        return dict(pairs)

    try:
        return json.loads(content.decode(), object_pairs_hook=reject_duplicate_keys)
    except RecursionError:
        raise UnsafeArtifactError(f"{what} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise UnsafeArtifactError(f"{what} is not JSON: {str(error)[:200]}") from None


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise UnsafeArtifactError(f"its size of {size} bytes exceeds the {limit} allowed for its type")


def _check_not_executable(stream: BinaryIO) -> None:
    """Name the most frequent attacks explicitly; the format's own check finds any other mismatch."""
    start = stream.read(8)
    stream.seek(0)
    if start.startswith(_PICKLE_OR_ARCHIVE):
        raise UnsafeArtifactError("it contains a pickle, an archive or a program under another name")
