"""Names of the fields of manifests and sidecars: which are read, other spellings of them, and what is not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

SIDECAR_FIELDS = ("caption", "captions", "tempo_bpm", "key", "title", "composer", "source", "licence")
# they decide on files and splits, which are known before sidecars are read
MANIFEST_ONLY = ("split", "composition_id", "duration_seconds")
MANIFEST_FIELDS = ("file", *SIDECAR_FIELDS, *MANIFEST_ONLY)
# the same word: of Hugging Face's audio folders, and in American spelling
EQUIVALENTS = {"file_name": "file", "license": "licence"}
PROBABLE = {
    "filename": "file", "file_path": "file", "filepath": "file", "audio_filepath": "file", "path": "file",
    "audio": "file", "audio_file": "file", "wav": "file", "text": "caption", "description": "caption",
    "prompt": "caption", "transcription": "caption", "sentence": "caption", "bpm": "tempo_bpm", "tempo": "tempo_bpm",
    "duration": "duration_seconds", "length": "duration_seconds", "seconds": "duration_seconds", "artist": "composer",
    "author": "composer", "subset": "split", "rights": "licence", "name": "title",
}  # fmt: skip
# columns of the default corpus, which are for its reader
INFORMATIVE = frozenset({"id", "genre", "ensemble", "collection", "sha256"})


def rename_fields(fields: Mapping[str, Any], allowed: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields under the names that are read, and the names that are not.

    Case and surrounding blanks of a name do not matter; the exact name wins over another spelling of it.
    """
    renamed: dict[str, Any] = {name: value for name, value in fields.items() if name in allowed}
    ignored = []
    for name, value in fields.items():
        if name in allowed or name in INFORMATIVE:
            continue
        plain = name.strip().casefold()
        plain = EQUIVALENTS.get(plain, plain)
        if plain in allowed and plain not in renamed:
            renamed[plain] = value
        else:
            ignored.append(name.encode(errors="backslashreplace").decode())
    return renamed, ignored


def suggest_field(name: str) -> str:
    """Return the field that a name probably means, or an empty text."""
    plain = name.strip().casefold().replace(" ", "_").replace("-", "_")
    plain = EQUIVALENTS.get(plain) or PROBABLE.get(plain) or plain
    return next(iter(get_close_matches(plain, MANIFEST_FIELDS, 1, cutoff=0.75)), "")


def describe_ignored(names: Iterable[str]) -> str:
    """Return names that are not read, each with what it probably means."""
    return ", ".join(_describe_name(name) for name in names)


def _describe_name(name: str) -> str:
    if name in MANIFEST_ONLY:
        return f"{name!r} (which belongs in a manifest)"
    suggestion = suggest_field(name)
    return f"{name!r} (did you mean {suggestion!r}?)" if suggestion else repr(name)
