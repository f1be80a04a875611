"""What there is to ingest: the audio files of a folder or bucket, with what is known of each."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from presto_core.audio.chunks import is_audio
from presto_core.config.errors import UserError
from presto_core.diffusion.conditioning import key_index
from presto_core.registry.store import Folder

MANIFEST = "manifest.jsonl"
SIDECARS = (".json", ".txt")


class SourceError(UserError):
    """A source of audio that cannot be used."""


@dataclass(frozen=True)
class Track:
    """One audio file.

    Attributes:
        file: path below the source.
        caption: what one hears; empty means: look in sidecar files and tags.
        composition: what decides the split, so that one piece is never on both sides.
        split: `train` or `held_out`; empty means: not said, to be decided by composition.
        seconds: length where known, else 0.
    """

    file: str
    caption: str = ""
    tempo_bpm: float | None = None
    key: str | None = None
    composition: str = ""
    split: str = ""
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
        SourceError: no audio there, a bad row in the manifest, or one composition in both splits.
    """
    if source.exists(MANIFEST):
        content = _read(source, MANIFEST)
        tracks = [_from_row(row, number) for number, row in enumerate(_json_lines(content), 1)]
        digest = hashlib.sha256(content).hexdigest()
    else:
        names, digest = _audio_files(source)
        tracks = [Track(file=name) for name in names]
    if not tracks:
        raise SourceError(
            f"no audio in {source.uri}: looked for {MANIFEST} and for wav, flac, ogg, opus, mp3, aiff files"
        )
    return _completed(sorted(tracks, key=lambda t: t.file), held_out_fraction, licence), digest


def described(track: Track, content: bytes, source: Folder) -> Track:
    """The track with a caption: its own, a sidecar's (.json, .txt), its tags', or its file name's.

    Raises:
        ValueError: the sidecar is no JSON object, or its key or tempo_bpm is none.
    """
    if track.caption:
        return track
    facts = {name: value for name, value in _facts(_sidecar(source, _stem(track.file))).items() if value}
    return replace(track, **{"caption": _tag_caption(content, track.file), **facts})


def _sidecar(source: Folder, stem: str) -> dict[str, Any]:
    """What the file beside a track says of it; nothing where there is none."""
    if source.exists(f"{stem}.json"):
        try:
            known = json.loads(_read(source, f"{stem}.json"))
        except ValueError as error:
            raise ValueError(f"its sidecar {stem}.json is not JSON: {error}") from None
        if not isinstance(known, dict):
            raise ValueError(f"its sidecar {stem}.json must hold an object, not {type(known).__name__}")
        return known
    if source.exists(f"{stem}.txt"):
        return {"caption": _read(source, f"{stem}.txt").decode(errors="replace").strip()}
    return {}


def _facts(known: dict[str, Any]) -> dict[str, Any]:
    """The fields that a manifest's row and a sidecar share, each of its type."""
    texts = {name: str(known.get(name) or "") for name in ("caption", "title", "composer", "source", "licence")}
    key = str(known["key"]) if known.get("key") else None
    key_index(key)
    return {**texts, "key": key, "tempo_bpm": _number(known, "tempo_bpm")}


def _number(known: dict[str, Any], name: str) -> float | None:
    value = known.get(name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be a number") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name}={value!r} must be finite")
    return number


def _from_row(row: dict[str, Any], number: int) -> Track:
    name = row.get("file")
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{MANIFEST} line {number}: file={name!r} must be a path below the source")
    split = row.get("split") or ""
    if split not in ("", "train", "held_out"):
        raise SourceError(f"{MANIFEST} line {number}: split={split!r} must be train or held_out")
    try:
        facts, seconds = _facts(row), _number(row, "duration_seconds") or 0.0
    except ValueError as error:
        raise SourceError(f"{MANIFEST} line {number}: {error}") from None
    return Track(file=name, composition=str(row.get("composition_id") or ""), split=split, seconds=seconds, **facts)


def _completed(tracks: list[Track], held_out_fraction: float, licence: str) -> list[Track]:
    """Fill in composition, split and licence where the source does not say; a composition has one split."""
    named = [replace(t, composition=t.composition or _own_name(t), licence=t.licence or licence) for t in tracks]
    said: dict[str, str] = {}
    for track in named:
        if track.split and said.setdefault(track.composition, track.split) != track.split:
            raise SourceError(
                f"{MANIFEST} puts composition {track.composition!r} into both splits ({track.file} is "
                f"{track.split}): what is held out would be heard in training; mend the rows' split"
            )
    return [replace(t, split=said.get(t.composition) or _hashed_split(t.composition, held_out_fraction)) for t in named]


def _own_name(track: Track) -> str:
    """A track's composition where no one names it: files of one name are one piece, unless the source splits them."""
    return _stem(track.file) if track.split else PurePosixPath(track.file).stem


def _hashed_split(composition: str, held_out_fraction: float) -> str:
    """By hash, so that a file never changes sides."""
    hashed = int.from_bytes(hashlib.sha256(composition.encode()).digest()[:8], "big") / 2**64
    return "held_out" if hashed < held_out_fraction else "train"


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _audio_files(source: Folder) -> tuple[list[str], str]:
    """The audio below a folder, and a hash that changes when a file or a sidecar does: of names, sizes and times."""
    try:
        infos = source.filesystem.get_file_info(pafs.FileSelector(source.path, recursive=True))
    except FileNotFoundError:
        raise SourceError(f"{source.uri} does not exist; give a folder or s3:// prefix of audio") from None
    except NotADirectoryError:
        raise SourceError(f"{source.uri} is not a folder") from None
    files = {i.path.removeprefix(source.path).lstrip("/"): i for i in infos if i.type == pafs.FileType.File}
    names = sorted(name for name in files if is_audio(name))
    beside = {stem + suffix for stem in map(_stem, names) for suffix in SIDECARS}
    seen = [(name, i.size, i.mtime_ns) for name, i in sorted(files.items()) if is_audio(name) or name in beside]
    return names, hashlib.sha256(json.dumps(seen).encode()).hexdigest()


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
