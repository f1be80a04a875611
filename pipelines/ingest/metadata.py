"""Fields of a track that manifest rows and sidecars share, converted to their types."""

from __future__ import annotations

import json
import math
from typing import Any

from presto_core.diffusion.conditioning import key_index


def parse_metadata(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert the fields that manifest rows and sidecars share to their types.

    The first of `captions` is the caption if there is no other.

    Raises:
        ValueError: tempo_bpm is not a finite number, key is not a musical key, or captions is not a list of texts.
    """
    texts = {name: str(fields.get(name) or "") for name in ("caption", "title", "composer", "source", "licence")}
    key = str(fields["key"]) if fields.get("key") else None
    key_index(key)
    captions = _parse_captions(fields.get("captions"))
    if captions and not texts["caption"]:
        texts["caption"], *rest = captions
        captions = tuple(rest)
    return {**texts, "key": key, "tempo_bpm": parse_number(fields, "tempo_bpm"), "captions": captions}


def _parse_captions(value: Any) -> tuple[str, ...]:
    """Return further wordings of a caption: a list, or in CSV one as JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"captions={value!r} must be a JSON list of texts") from None
    if hasattr(value, "tolist"):  # an array of a Parquet manifest
        value = value.tolist()
    if value is None or value == "":
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"captions={value!r} must be a list of texts, none of them empty")
    return tuple(value)


def parse_number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    try:
        number = None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be a number") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name}={value!r} must be finite")
    return number
