"""What ingest would take from a source and how it would describe it, without Ray and without writing anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.console import LOG_WIDTH, make_printable, shorten
from pipelines.data.layout import SPLITS
from pipelines.ingest.bad_files import Header, can_read_headers, read_headers
from pipelines.ingest.curation import FILE_MISSING, RejectedFile
from pipelines.ingest.latent_cache import IngestFailure
from pipelines.ingest.sidecars import IGNORED_KEYS, add_sidecar_fields, read_metadata
from pipelines.ingest.source_file import open_source_file
from pipelines.ingest.sources import Track, find_tracks
from pipelines.ingest.summary import describe_bad, describe_ignored_keys, describe_metadata, describe_skipped
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError
from presto_core.config.data import IngestConfig

SHOWN = 10  # files whose metadata is shown, evenly over the source
MAX_HEADERS = 2000  # local files that are opened, evenly over a larger source


@dataclass(frozen=True)
class Preview:
    """What is known before anything is encoded.

    Attributes:
        tracks: all tracks of the source.
        opened: those whose metadata was read, with it.
        bad: those that cannot be used, as far as is known.
        skipped: files that are not taken, by reason.
        ignored_keys: key of sidecars that is not read -> number of files with it.
    """

    tracks: list[Track]
    opened: list[Track]
    bad: list[RejectedFile]
    skipped: Counter[str]
    ignored_keys: Counter[str]


def preview_source(config: IngestConfig, *, on_progress: Callable[[int], None] = lambda done: None) -> Preview:
    """Open local files as far as their headers, and `SHOWN` files of object storage.

    Raises:
        SourceError, StoreError: as for ingest itself.
    """
    skipped = Counter[str]()
    tracks = find_tracks(config, skipped=skipped)
    bad = [_reject_missing(track) for track in tracks if not track.stamp]
    local = _pick([track for track in tracks if can_read_headers(track)], MAX_HEADERS)
    headers = dict(zip(local, read_headers(local, on_progress=on_progress)))
    remote = [track for track in tracks if track.stamp and not can_read_headers(track)]
    headers |= {track: _read_remote(track) for track in _pick(remote, SHOWN)}
    opened, ignored_keys = [], Counter[str]()
    for track, header in headers.items():
        ignored_keys.update(header.facts.get(IGNORED_KEYS, ()))
        if header.failure:
            bad.append(RejectedFile(track.file, track.uri, header.failure))
        else:
            described = add_sidecar_fields(track, header.facts)
            opened.append(replace(described, licence=described.licence or config.licence))
    return Preview(tracks, opened, bad, skipped, ignored_keys)


def _reject_missing(track: Track) -> RejectedFile:
    failure = IngestFailure("fetch", "FileNotFoundError", track.problem) if track.problem else FILE_MISSING
    return RejectedFile(track.file, track.uri, failure)


def _read_remote(track: Track) -> Header:
    """Read the metadata of a file of object storage, which is fetched whole for its tags."""
    source = open_folder(track.source_uri)
    try:
        with open_source_file(source, track.path) as file:
            return Header(read_metadata(track, file.stream, source))
    except ValueError as error:
        return Header({}, IngestFailure("describe", type(error).__name__, " ".join(str(error).split())))
    except StoreError as error:
        return Header({}, IngestFailure("fetch", type(error).__name__, str(error)))


def _pick(tracks: list[Track], count: int) -> list[Track]:
    """Up to `count` tracks, evenly over the list."""
    chosen = min(count, len(tracks))
    return [tracks[i * len(tracks) // chosen] for i in range(chosen)]


def format_preview(preview: Preview, config: IngestConfig) -> list[str]:
    """The preview as lines of at most 80 columns, two of which are left for a comment's sign."""
    known = len(preview.opened) + len(preview.bad)
    unknown = f", {len(preview.tracks) - known} of them not opened" if known < len(preview.tracks) else ""
    splits = Counter(track.split for track in preview.tracks)
    lines = [
        f"preview: {len(preview.tracks):,} files{unknown}; nothing is encoded or written",
        "files        " + ", ".join(f"{splits[split]:,} {split}" for split in SPLITS),
        *describe_metadata(preview.opened),
        *describe_ignored_keys(preview.ignored_keys),
        *describe_skipped(preview.skipped),
        *describe_bad(preview.bad),
    ]
    if len(preview.bad) > config.max_bad_fraction * len(preview.tracks) + 1e-9:
        lines.append(
            f"this is more than ingest.max_bad_fraction={config.max_bad_fraction:g} allows: ingest would refuse it"
        )
    shown = _pick(preview.opened, SHOWN)
    lines += [f"{len(shown)} of them, as they would be described:"] if shown else []
    for number, track in enumerate(shown, 1):
        lines += _describe_track(number, track)
    return [shorten(line, LOG_WIDTH - 2) for line in lines]


def _describe_track(number: int, track: Track) -> list[str]:
    tempo = "tempo unknown" if track.tempo_bpm is None else f"{track.tempo_bpm:g} bpm"
    facts = ", ".join((track.split, tempo, track.key or "key unknown", track.licence or "licence not stated"))
    wordings = f" (and {len(track.captions)} more wordings)" if track.captions else ""
    caption = f"{track.caption_source}: {track.caption}{wordings}"
    return [make_printable(text) for text in (f"{number:2} {track.file}", f"   {facts}", f"   {caption}")]
