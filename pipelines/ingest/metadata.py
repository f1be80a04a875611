"""Fields of a track that manifest rows and sidecars share, converted to their types."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from presto_core.diffusion.conditioning import key_index, key_name

TEXT_FIELDS = ("caption", "title", "composer", "source", "licence")
# how other programs write an empty cell as text; a title or a name may be such a word
MISSING_WORDS = frozenset({"nan", "none", "null", "<na>", "n/a"})
NAMES_OF_WORKS = ("title", "composer", "source")
UNITS = {"tempo_bpm": "bpm", "duration_seconds": "s"}

STORED_KEY = re.compile(r"[A-G][#b]? (major|minor)")  # as data sets have it


def parse_metadata(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert the fields that manifest rows and sidecars share to their types; a missing one is empty or None.

    Raises:
        ValueError: tempo_bpm is not a number above 0, key is not a musical key, captions is not a list of texts, a text
            is a list or another structure, or holds half of a character.
    """
    texts = {name: parse_text(fields, name) for name in TEXT_FIELDS}
    tempo_bpm = parse_number(fields, "tempo_bpm")
    if tempo_bpm is not None and tempo_bpm <= 0:
        raise ValueError(f"tempo_bpm={fields['tempo_bpm']!r} must be above 0; leave it out if the tempo is unknown")
    captions = _parse_captions(fields.get("captions"))
    return {**texts, "key": parse_key(fields), "tempo_bpm": tempo_bpm, "captions": captions}


def promote_caption(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata with the first of `captions` as the caption, if there is no other."""
    if metadata.get("caption") or not metadata.get("captions"):
        return metadata
    first, *others = metadata["captions"]
    return metadata | {"caption": first, "captions": tuple(others)}


def is_missing(value: Any) -> bool:
    """Return whether a value means that there is none: None, NaN, blanks, or a word for them."""
    if isinstance(value, str):
        return not value.strip() or value.strip().casefold() in MISSING_WORDS
    return value is None or (isinstance(value, float) and math.isnan(value))


def parse_text(fields: dict[str, Any], name: str) -> str:
    """Return a field as text; empty if it is missing.

    Raises:
        ValueError: it is not one text or number, or holds half of a character.
    """
    value = fields.get(name)
    if isinstance(value, (list, tuple, set, dict, bool, bytes)):
        hint = "; put several wordings into captions" if name == "caption" else ""
        raise ValueError(f"{name}={value!r} must be one text, not {type(value).__name__}{hint}")
    if is_missing(value) and not (name in NAMES_OF_WORKS and isinstance(value, str) and value.strip()):
        return ""
    check_characters(name, text := str(value))
    return text


def check_characters(name: str, text: str) -> None:
    """Raise ValueError if a text holds a lone surrogate, which no file or tokenizer can store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = ascii(text[max(error.start - 30, 0) : error.start + 10])
        raise ValueError(
            f"{name} holds half of a character, a lone surrogate, in {part}; write the whole character"
        ) from None


def parse_key(fields: dict[str, Any]) -> str | None:
    """Return a key as data sets have it (`C# minor`), from any usual spelling (`musical_words`); None if it is missing.

    Raises:
        ValueError: it is not a musical key.
    """
    text = parse_text(fields, "key")
    if not text or STORED_KEY.fullmatch(text):  # kept as it is: it is part of a data set's ID
        return text or None
    return key_name(key_index(text.replace("_", " ")))


def _parse_captions(value: Any) -> tuple[str, ...]:
    """Return further wordings of a caption: a list, or in CSV one as JSON."""
    if is_missing(value):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            message = f"captions={value!r} must be a JSON list of texts; write a single text as caption"
            raise ValueError(message) from None
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"captions={value!r} must be a list of texts, none of them empty")
    for text in value:
        check_characters("captions", text)
    return tuple(value)


def parse_number(fields: dict[str, Any], name: str) -> float | None:
    """Return a field as a number, with or without its unit (`120 bpm`); None if it is missing.

    Raises:
        ValueError: it is not a finite number.
    """
    value: Any = fields.get(name)
    if is_missing(value):
        return None
    text = re.sub(rf"\s*{UNITS[name]}\.?$", "", value.strip(), flags=re.IGNORECASE) if isinstance(value, str) else value
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be a number") from None
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError(f"{name}={str(value)[:20]}... is too large") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} must be finite")
    return number
