"""Decode text files that people write: UTF-8, or UTF-16 and UTF-32 with a byte order mark; and JSON in them."""

from __future__ import annotations

import codecs
import json
from typing import Any

MARKS = {  # those of UTF-32 first: they begin as those of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(content: bytes) -> str:
    """Return a file's text without its byte order mark.

    Raises:
        ValueError: it is in another encoding, which the message names.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        damage = f"byte {error.start} is 0x{content[error.start]:02x}"
        probable = _guess_encoding(content) if encoding == "utf-8" else f"damaged {encoding.upper()}"
        raise ValueError(f"is not UTF-8 text but probably {probable} ({damage}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("is not UTF-8 text but probably UTF-16 (it holds zero bytes); save it as UTF-8")
    return text


def parse_json(text: str) -> Any:
    """Parse a text as JSON.

    Raises:
        ValueError: it is not JSON, is nested too deep, or an object has a key twice, of which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object)
    except _RepeatedKeyError:
        raise
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("is not usable JSON: its values are nested too deep") from None


class _RepeatedKeyError(ValueError):
    pass


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"has {twice!a} twice in one object; remove one of them")
    return fields


def _guess_encoding(content: bytes) -> str:
    if b"\0" in content:
        return "UTF-16"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "Latin-1 or another single-byte encoding"
    is_latin = not any(0x80 <= byte < 0xA0 for byte in content)
    return "Latin-1 (or Windows-1252)" if is_latin else "Windows-1252"
