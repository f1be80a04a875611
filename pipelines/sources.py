"""What there is to ingest: the audio files of a folder or bucket, with what is known of each."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from presto_core.audio.chunks import is_audio
from presto_core.config.errors import UserError
from presto_core.diffusion.conditioning import key_index
from presto_core.registry.store import Folder

MANIFEST = "manifest.jsonl"


class SourceError(UserError):
    """A source of audio that cannot be used."""


@dataclass(frozen=True)
class Track:
    """One audio file.

    Attributes:
        file: path below the source.
        caption: what one hears; empty means: look in sidecar files and tags.
        composition: what decides the split, so that one piece is never on both sides.
        split: `train` or `held_out`.
        seconds: length where known, else 0.
    """

    file: str
    caption: str = ""
    tempo_bpm: float | None = None
    key: str | None = None
    composition: str = ""
    split: str = "train"
    title: str = ""
    composer: str = ""
    source: str = ""
    licence: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_tracks(source: Folder, *, held_out_fraction: float, licence: str) -> tuple[list[Track], str]:
    """The tracks of a source in a fixed order, and a hash of what they are.

    A `manifest.jsonl` (as `presto corpus build` writes it) says what to take; without one, every audio file below the
    folder is taken.

    Raises:
        SourceError: no audio there, or a bad row in the manifest.
    """
    if source.exists(MANIFEST):
        content = _read(source, MANIFEST)
        tracks = [_from_row(row, number) for number, row in enumerate(_json_lines(content), 1)]
        digest = hashlib.sha256(content).hexdigest()
    else:
        infos = _audio_files(source)
        tracks = [Track(file=name) for name, _ in infos]
        digest = hashlib.sha256(json.dumps(infos).encode()).hexdigest()
    if not tracks:
        raise SourceError(
            f"no audio in {source.uri}: looked for {MANIFEST} and for wav, flac, ogg, opus, mp3, aiff files"
        )
    return [_complete(t, held_out_fraction, licence) for t in sorted(tracks, key=lambda t: t.file)], digest


def described(track: Track, content: bytes, source: Folder) -> Track:
    """The track with a caption: its own, a sidecar's (.txt, .json), its tags', or its file name's."""
    if track.caption:
        return track
    stem = track.file.rpartition(".")[0]
    known: dict[str, Any] = {}
    if source.exists(f"{stem}.json"):
        known = json.loads(_read(source, f"{stem}.json"))
    elif source.exists(f"{stem}.txt"):
        known = {"caption": _read(source, f"{stem}.txt").decode(errors="replace").strip()}
    caption = str(known.get("caption") or "") or _tag_caption(content, track.file)
    fields = {name: known[name] for name in ("tempo_bpm", "key", "title", "composer", "licence") if name in known}
    return replace(track, caption=caption, **fields)


def _from_row(row: dict[str, Any], number: int) -> Track:
    name = row.get("file")
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{MANIFEST} line {number}: file={name!r} must be a path below the source")
    try:
        key_index(row.get("key"))
    except ValueError as error:
        raise SourceError(f"{MANIFEST} line {number}: {error}") from None
    if row.get("split", "train") not in ("train", "held_out"):
        raise SourceError(f"{MANIFEST} line {number}: split={row['split']!r} must be train or held_out")
    return Track(
        file=name,
        caption=str(row.get("caption") or ""),
        tempo_bpm=row.get("tempo_bpm"),
        key=row.get("key"),
        composition=str(row.get("composition_id") or ""),
        split=row.get("split") or "",
        title=str(row.get("title") or ""),
        composer=str(row.get("composer") or ""),
        source=str(row.get("source") or ""),
        licence=str(row.get("licence") or ""),
        seconds=float(row.get("duration_seconds") or 0.0),
    )


def _complete(track: Track, held_out_fraction: float, licence: str) -> Track:
    """Fill in composition and split where the source does not say: by hash, so that a file never changes sides."""
    composition = track.composition or PurePosixPath(track.file).stem
    hashed = int.from_bytes(hashlib.sha256(composition.encode()).digest()[:8], "big") / 2**64
    split = (
        track.split if track.composition and track.split else ("held_out" if hashed < held_out_fraction else "train")
    )
    return replace(track, composition=composition, split=split, licence=track.licence or licence)


def _audio_files(source: Folder) -> list[tuple[str, int]]:
    try:
        infos = source.filesystem.get_file_info(pafs.FileSelector(source.path, recursive=True))
    except FileNotFoundError:
        raise SourceError(f"{source.uri} does not exist; give a folder or s3:// prefix of audio") from None
    except NotADirectoryError:
        raise SourceError(f"{source.uri} is not a folder") from None
    files = [(i.path.removeprefix(source.path).lstrip("/"), i.size) for i in infos if i.type == pafs.FileType.File]
    return sorted((name, size) for name, size in files if is_audio(name))


def _tag_caption(content: bytes, name: str) -> str:
    """Title and genre of the tags, else the file's name in words."""
    import mutagen

    try:
        tags = mutagen.File(io.BytesIO(content), easy=True)
    except mutagen.MutagenError:
        tags = None
    found = [str(values[0]) for field in ("genre", "title") if (values := (tags or {}).get(field))]
    return ", ".join(found) or PurePosixPath(name).stem.replace("_", " ").replace("-", " ")


def _read(source: Folder, name: str) -> bytes:
    with source.filesystem.open_input_file(source.file(name)) as stream:
        return bytes(stream.read())


def _json_lines(content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{MANIFEST} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SourceError(f"{MANIFEST} line {number} must be an object, not {type(row).__name__}")
        rows.append(row)
    return rows
