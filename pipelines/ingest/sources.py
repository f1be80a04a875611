"""Find the audio files of folders and buckets, with the metadata that is known before they are opened."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pipelines.console import console, print_warning
from pipelines.data.layout import FORMER_SPLIT, SPLITS
from pipelines.ingest.audio_source import open_audio_source
from pipelines.ingest.listing import SourceFiles, find_name, list_named, list_source
from pipelines.ingest.manifests import Manifest, SourceError, find_manifest, raise_problems
from pipelines.ingest.metadata import (
    check_characters,
    is_missing,
    parse_metadata,
    parse_number,
    parse_text,
    promote_caption,
)
from pipelines.storage.filesystem import absolute_uri
from presto_core.artifacts.folder import Folder
from presto_core.audio.chunks import AUDIO_SUFFIXES
from presto_core.config.data import IngestConfig

SIDECARS = (".json", ".txt")
# other words for a split in manifests, and what they probably mean
SPLIT_SYNONYMS = {
    "training": "train", "val": "validation", "valid": "validation", "dev": "validation", "eval": "test",
    "evaluation": "test", "testing": "test", "held-out": FORMER_SPLIT, "heldout": FORMER_SPLIT,
}  # fmt: skip


@dataclass(frozen=True)
class Track:
    """One audio file.

    Attributes:
        file: name in the data set.
        source_uri: URI of its source.
        path: path below the source.
        stamp: changes with the file, its sidecars, and whether a caption is missing; empty if the source has no such
            file.
        sidecars: paths of its metadata files; the first that has a field decides it.
        problem: why the source cannot open it, if it is known before.
        manifest_fields: fields that the manifest sets, which win over those of sidecars.
        caption: description of the music; if empty, it is read from the sidecar, the tags or the file name.
        caption_source: origin of the caption: manifest, sidecar, tags or name.
        captions: further wordings of the caption; windows of a training track take turns with it and them.
        composition: determines the split, so that one piece is never in two.
        split: `train`, `validation` or `test`; if empty, it follows from the composition.
        seconds: length from the manifest, otherwise 0.
    """

    file: str
    source_uri: str = ""
    path: str = ""
    stamp: str = ""
    sidecars: tuple[str, ...] = ()
    problem: str = ""
    manifest_fields: tuple[str, ...] = ()
    caption: str = ""
    caption_source: str = ""
    captions: tuple[str, ...] = ()
    tempo_bpm: float | None = None
    key: str | None = None
    composition: str = ""
    split: str = ""
    title: str = ""
    composer: str = ""
    source: str = ""
    licence: str = ""
    seconds: float = 0.0

    @property
    def uri(self) -> str:
        return f"{self.source_uri}/{self.path}"


def find_tracks(config: IngestConfig, *, skipped: Counter[str] | None = None) -> list[Track]:
    """Find the tracks of all sources, sorted by name.

    A manifest selects the files; without one, every audio file below a source is used.

    Args:
        skipped: gets the numbers of files that look like audio and are not taken, by reason.

    Raises:
        SourceError: there is no audio, a manifest has an invalid row, or one composition is in two splits.
    """
    sources = [open_audio_source(absolute_uri(uri)) for uri in config.source]
    tracks = [
        track
        for source in sources
        for track in read_tracks(source.folder, config.manifest, file=source.file, skipped=skipped)
    ]
    folders = list({source.folder.uri: source.folder for source in sources}.values())
    if not tracks:
        source_list = ", ".join(source.uri for source in sources)
        suffixes = ", ".join(s[1:] for s in AUDIO_SUFFIXES)
        raise SourceError(f"no audio in {source_list}; add a manifest with rows, or files of type {suffixes}")
    named_tracks = tracks if len(folders) == 1 else _prefix_source_names(tracks, folders)
    check_unique_names(named_tracks)
    return _fill_defaults(sorted(named_tracks, key=lambda t: t.file), config)


def read_tracks(
    source: Folder, manifest_uri: str, *, file: str = "", skipped: Counter[str] | None = None
) -> list[Track]:
    """Find the tracks of one source, named by their paths.

    Args:
        file: the only file that is taken, with its sidecars; empty takes all.
        skipped: see `find_tracks`.
    """
    names = (file, *(strip_suffix(file) + suffix for suffix in SIDECARS)) if file else ()
    listing = list_named(source, names) if file else list_source(source)
    manifest = find_manifest(source, listing.files, manifest_uri)
    if manifest is None:
        audio = [file] if file else listing.audio
        tracks = [Track(file=name, source_uri=source.uri, path=name) for name in audio]
        for line in listing.describe_skipped():
            print_warning(f"{source.uri}: {line}")
    else:
        tracks = [track for track in _tracks_from_rows(manifest, source, listing) if file in ("", track.path)]
    if skipped is not None:
        skipped.update(_count_skipped(listing, manifest, {track.path for track in tracks}))
    return [_stamp_track(track, listing) for track in tracks]


def _count_skipped(listing: SourceFiles, manifest: Manifest | None, taken: set[str]) -> dict[str, int]:
    """Count what looks like audio and is not taken, by reason."""
    if manifest is not None:
        unlisted = {*listing.audio, *listing.other_audio} - taken
        return {f"audio files that {manifest.name} does not list": len(unlisted)}
    return {
        "files of types that are not searched for": len(listing.other_audio),
        "files of macOS without audio": len(listing.forks),
    }


def _stamp_track(track: Track, listing: SourceFiles) -> Track:
    """Add the track's sidecars and a stamp of all its files' sizes and modification times, or why it has none."""
    files = listing.files
    if track.path not in files:
        return replace(track, problem=listing.problems.get(track.path, ""))
    sidecars = tuple(name for suffix in SIDECARS if (name := strip_suffix(track.path) + suffix) in files)
    file_stats = [(files[name].size, files[name].mtime_ns) for name in (track.path, *sidecars)]
    return replace(track, sidecars=sidecars, stamp=json.dumps([file_stats, not track.caption]))


def _tracks_from_rows(manifest: Manifest, source: Folder, listing: SourceFiles) -> list[Track]:
    """Return the tracks of a manifest; SourceError names the bad rows, all at once."""
    tracks, problems = [], list(manifest.problems)
    for number, row in manifest.rows:
        try:
            tracks.append(_track_from_row(row, source, listing))
        except ValueError as error:
            problems.append((number, f": {error}"))
    raise_problems(manifest, problems)
    return tracks


def _track_from_row(row: dict[str, Any], source: Folder, listing: SourceFiles) -> Track:
    """Return the track of a row; ValueError names the field that is invalid."""
    name = row.get("file")
    if isinstance(name, str):
        name = find_name(name, source, listing.files)
    if (
        not isinstance(name, str)
        or not name
        or name.startswith("/")
        or {"..", "\0"} & {*PurePosixPath(name).parts, *name}
    ):
        raise ValueError(f"file={name!r} is invalid; write a path below the source")
    check_characters("file", name)
    metadata = promote_caption(parse_metadata(row))
    duration_seconds = parse_number(row, "duration_seconds") or 0.0
    if duration_seconds < 0:
        raise ValueError(f"duration_seconds={row['duration_seconds']!r} must not be negative")
    known = {**metadata, "caption_source": "manifest" if metadata["caption"] else ""}
    return Track(
        file=name,
        source_uri=source.uri,
        path=name,
        manifest_fields=tuple(field for field, value in known.items() if value),
        composition=parse_text(row, "composition_id"),
        split=_parse_split(row),
        seconds=duration_seconds,
        **known,
    )


def _parse_split(row: dict[str, Any]) -> str:
    """Return a row's split, whatever its case; empty if it has none."""
    value = row.get("split")
    if is_missing(value):
        return ""
    split = str(value).strip().lower()
    if split in (*SPLITS, FORMER_SPLIT):
        return split
    meant = SPLIT_SYNONYMS.get(split)
    hint = f"did you mean {meant!r}? " if meant else ""
    raise ValueError(f"split={value!r} is invalid; {hint}use train, validation or test")


def _prefix_source_names(tracks: list[Track], folders: list[Folder]) -> list[Track]:
    """Name the tracks of several sources by the last part of the source's path and their own path."""
    bases = [PurePosixPath(folder.path).name for folder in folders]
    names = {
        f.uri: base if bases.count(base) == 1 else f"{base}-{i}" for i, (f, base) in enumerate(zip(folders, bases))
    }
    return [replace(track, file=f"{names[track.source_uri]}/{track.path}") for track in tracks]


def check_unique_names(tracks: list[Track]) -> None:
    seen: set[str] = set()
    for track in tracks:
        if track.file in seen:
            raise SourceError(f"file {track.file!r} appears twice in {track.source_uri}; list each file once")
        seen.add(track.file)


def _fill_defaults(tracks: list[Track], config: IngestConfig) -> list[Track]:
    """Fill in missing compositions, splits and licences; all tracks of a composition get the same split."""
    named = [
        replace(t, composition=t.composition or _default_composition(t), licence=t.licence or config.licence)
        for t in tracks
    ]
    splits = _divide_former_split(_collect_given_splits(named), config)
    return [replace(t, split=splits.get(t.composition) or _split_by_hash(t.composition, config)) for t in named]


def _collect_given_splits(tracks: list[Track]) -> dict[str, str]:
    """Return composition -> the split that its rows name; SourceError if they name two."""
    splits: dict[str, str] = {}
    for track in tracks:
        if track.split and splits.setdefault(track.composition, track.split) != track.split:
            raise SourceError(
                f"the manifest of {track.source_uri} has composition {track.composition!r} in two splits, "
                f"{splits[track.composition]} and {track.split} ({track.file}), so music of one would leak into the "
                "other; give all its rows the same split"
            )
    return splits


def _divide_former_split(splits: dict[str, str], config: IngestConfig) -> dict[str, str]:
    """Divide what a manifest calls `held_out`, the former name, between validation and test; print the counts."""
    shares = (config.validation_fraction, config.test_fraction)
    test_share = shares[1] / sum(shares) if any(shares) else 0.5
    # another hash than _split_by_hash's: a manifest may have chosen `held_out` by that one
    divided = {
        name: "test" if _unit_hash(f"test/{name}") < test_share else "validation"
        for name, split in splits.items()
        if split == FORMER_SPLIT
    }
    if divided:
        count = sum(split == "test" for split in divided.values())
        console.print(
            f"ingest: {FORMER_SPLIT} is the former name of two splits; of its {len(divided)} compositions, "
            f"{len(divided) - count} are for validation and {count} for test"
        )
    return splits | divided


def _default_composition(track: Track) -> str:
    """Return a track's default composition: its file name, or its whole path if the manifest sets its split."""
    return strip_suffix(track.file) if track.split else PurePosixPath(track.file).stem


def _split_by_hash(composition: str, config: IngestConfig) -> str:
    """Choose the split by hash, so that a file never changes its split: test below validation below train."""
    position = _unit_hash(composition)
    if position < config.test_fraction:
        return "test"
    return "validation" if position < config.test_fraction + config.validation_fraction else "train"


def _unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1), equal on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def strip_suffix(file: str) -> str:
    """Return a path without its suffix."""
    return str(PurePosixPath(file).with_suffix(""))
