"""Read a track's caption, tempo, key and licence from its sidecar, tags or file name, if no manifest has a caption."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pipelines.ingest.metadata import parse_metadata
from pipelines.ingest.sources import Track
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes


def read_metadata(track: Track, content: BinaryIO, source: Folder) -> dict[str, Any]:
    """Return fields from the track's sidecar (.json, .txt); the caption falls back to tags, then to the file name.

    Args:
        content: the audio file, seekable.

    Raises:
        ValueError: the sidecar is not a JSON object, or its key or tempo_bpm is invalid.
    """
    if track.caption:
        return {}
    metadata = {name: value for name, value in parse_metadata(_read_sidecar(source, track.sidecar)).items() if value}
    if "caption" in metadata:
        return {"caption_source": "sidecar", **metadata}
    tag_caption = _read_tag_caption(content)
    name_caption = PurePosixPath(track.file).stem.replace("_", " ").replace("-", " ")
    return {"caption_source": "tags" if tag_caption else "name", "caption": tag_caption or name_caption, **metadata}


def _read_sidecar(source: Folder, name: str) -> dict[str, Any]:
    """Read the fields of a track's sidecar; empty if it has none."""
    if name.endswith(".json"):
        try:
            fields = json.loads(read_bytes(source, name))
        except ValueError as error:
            raise ValueError(f"its sidecar {name} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"its sidecar {name} must hold an object, not {type(fields).__name__}")
        return fields
    if name:
        return {"caption": read_bytes(source, name).decode(errors="replace").strip()}
    return {}


def _read_tag_caption(content: BinaryIO) -> str:
    """Return genre and title from the tags; empty if there are none."""
    import mutagen

    content.seek(0)
    try:
        tags = mutagen.File(content, easy=True)
    except (mutagen.MutagenError, OSError, ValueError):  # damaged tags are no reason to reject the music
        tags = None
    texts = [str(values[0]) for field in ("genre", "title") if (values := (tags or {}).get(field))]
    return ", ".join(texts)
