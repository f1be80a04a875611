"""Read what a track's sidecars, tags and file name add to its manifest row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pipelines.ingest.field_names import SIDECAR_FIELDS, rename_fields
from pipelines.ingest.metadata import parse_metadata, promote_caption
from pipelines.ingest.sources import Track
from pipelines.ingest.tags import read_tag_caption
from pipelines.ingest.text_files import decode_text, parse_json
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes

IGNORED_KEYS = "ignored_keys"  # among the facts of a track: keys of its sidecar that are not read


def read_metadata(track: Track, content: BinaryIO, source: Folder) -> dict[str, Any]:
    """Return the fields of the track's sidecars (.json, .txt); a missing caption falls back to tags, then to its name.

    Args:
        content: the audio file, seekable.

    Returns:
        Fields of a Track, and `IGNORED_KEYS` if a sidecar has any; `add_sidecar_fields` merges them.

    Raises:
        ValueError: a sidecar is not a JSON object or not UTF-8, or one of its fields is invalid.
    """
    metadata: dict[str, Any] = {}
    ignored: list[str] = []
    for name in track.sidecars:
        fields, others = rename_fields(_read_sidecar(source, name), (*SIDECAR_FIELDS, "file"))
        ignored += others
        metadata = {field: value for field, value in parse_metadata(fields).items() if value} | metadata
    facts = metadata | ({IGNORED_KEYS: ignored} if ignored else {})
    if track.caption:
        return facts
    facts = promote_caption(facts)
    if "caption" in facts:
        return {"caption_source": "sidecar", **facts}
    tag_caption = read_tag_caption(content)
    name_caption = PurePosixPath(track.file).stem.replace("_", " ").replace("-", " ")
    return {"caption_source": "tags" if tag_caption else "name", "caption": tag_caption or name_caption, **facts}


def add_sidecar_fields(track: Track, facts: dict[str, Any]) -> Track:
    """Return the track with the fields of its sidecars that its manifest row does not set."""
    added = {
        name: value
        for name, value in facts.items()
        if value and name != IGNORED_KEYS and name not in track.manifest_fields
    }
    return replace(track, **added)


def _read_sidecar(source: Folder, name: str) -> dict[str, Any]:
    try:
        text = decode_text(read_bytes(source, name))
    except ValueError as error:
        raise ValueError(f"its sidecar {name} {error}") from None
    if not name.endswith(".json"):
        return {"caption": text.strip()}
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its sidecar {name} {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"its sidecar {name} must hold an object, not {type(fields).__name__}")
    return fields
