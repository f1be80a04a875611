"""Read a caption from the tags of an audio file: ID3, Vorbis comments, MP4, APE, ASF, and the INFO list of a WAV."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

GENRE_TAGS = ("genre", "TCON", "Genre", "WM/Genre")
TITLE_TAGS = ("title", "TIT2", "Title")
INFO_GENRE, INFO_TITLE = b"IGNR", b"INAM"
MAX_INFO_BYTES = 2**20
MAX_CHUNKS = 100  # damage may look like millions of empty ones


def read_tag_caption(content: BinaryIO) -> str:
    """Return genre and title from the tags; empty if there are none."""
    import mutagen

    content.seek(0)
    try:
        tags = mutagen.File(content, easy=True)
    except Exception:  # of any class: damaged tags are no reason to reject the music
        tags = None
    texts = [_read_tag(tags or {}, names) for names in (GENRE_TAGS, TITLE_TAGS)]
    if not any(texts):
        info = _read_info_list(content)
        texts = [info.get(INFO_GENRE, ""), info.get(INFO_TITLE, "")]
    return ", ".join(text for text in texts if text)


def _read_tag(tags: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first value of the first of these tags that there is."""
    for name in names:
        values = tags.get(name)
        values = getattr(values, "genres", None) or getattr(values, "text", values)  # of an ID3 frame
        if values:
            text = str(values if isinstance(values, str) else values[0]).strip()
            if text:
                return text
    return ""


def _read_info_list(content: BinaryIO) -> dict[bytes, str]:
    """Return the texts of a WAV's LIST INFO chunk by their identifiers; empty if there is none."""
    content.seek(0)
    head = content.read(12) or b""
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return {}
    for _ in range(MAX_CHUNKS):
        if len(chunk := content.read(8) or b"") < 8:
            break
        start, size = content.tell(), struct.unpack("<I", chunk[4:])[0]
        if chunk[:4] == b"LIST" and size <= MAX_INFO_BYTES:
            body = content.read(size) or b""
            if body.startswith(b"INFO"):
                return _parse_info(body[4:])
        content.seek(start + size + size % 2)
    return {}


def _parse_info(body: bytes) -> dict[bytes, str]:
    texts, position = dict[bytes, str](), 0
    while position + 8 <= len(body):
        size = struct.unpack_from("<I", body, position + 4)[0]
        value = body[position + 8 : position + 8 + size].rstrip(b"\0")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")  # the encoding of old programs
        texts[body[position : position + 4]] = " ".join(text.split())
        position += 8 + size + size % 2
    return texts
