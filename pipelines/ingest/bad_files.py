"""Files that cannot be used: found early by their headers, counted against the allowed share, grouped by reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from pipelines.console import make_printable
from pipelines.ingest.curation import RejectedFile
from pipelines.ingest.latent_cache import IngestFailure
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.sidecars import read_metadata
from pipelines.ingest.sources import Track
from pipelines.storage.filesystem import open_folder
from presto_core.audio.chunks import AudioError
from presto_core.audio.decoders import iter_sounds
from presto_core.audio.sound import Sound

MAX_FILES_NAMED = 5  # bad files that a message names
HEADER_THREADS = 4  # they wait for disks
HEADER_FRAMES = 4096  # decoded of each file


class TooManyBadFilesError(SourceError):
    """More files cannot be used than ingest.max_bad_fraction allows; `bad` holds those known by then."""

    def __init__(self, message: str, bad: Sequence[RejectedFile]) -> None:
        super().__init__(message)
        self.bad = list(bad)


@dataclass
class BadFileLimit:
    """Counts bad files while a source is encoded, and ends the run with the first that is too many.

    Attributes:
        total: files of the source; the last one that is allowed is known before all are read.
        bad: files that are known to be bad, by URI.
    """

    total: int
    allowed: float
    bad: dict[str, RejectedFile] = field(default_factory=dict)

    def add(self, rejected: RejectedFile) -> None:
        """Count a bad file; raises TooManyBadFilesError as `check_bad_fraction` does."""
        self.bad[rejected.uri] = rejected
        check_bad_fraction(list(self.bad.values()), self.total, self.allowed, stopped="; the rest was not read")


def check_bad_fraction(bad: Sequence[RejectedFile], total: int, allowed: float, *, stopped: str = "") -> None:
    """Raise TooManyBadFilesError, which names the first few files, if the fraction of bad files exceeds `allowed`.

    Args:
        stopped: what the message adds if not all files were read.
    """
    if len(bad) > allowed * total + 1e-9:
        named = "; ".join(f"{make_printable(b.file)}: {b.failure.message}" for b in bad[:MAX_FILES_NAMED])
        more = f" and {len(bad) - MAX_FILES_NAMED} more" if len(bad) > MAX_FILES_NAMED else ""
        raise TooManyBadFilesError(
            f"{len(bad)} of {total} files cannot be used, more than ingest.max_bad_fraction={allowed:g} allows: "
            f"{named}{more}{stopped}; repair or remove them, or raise ingest.max_bad_fraction",
            bad,
        )


@dataclass(frozen=True)
class Header:
    """What the beginning of a file and its sidecars tell: the fields that its track gets, or why it cannot be used."""

    facts: dict[str, Any]
    failure: IngestFailure | None = None


def can_read_headers(track: Track) -> bool:
    """Whether a track's file is there and on this machine: of object storage, a whole file would be fetched."""
    return bool(track.stamp) and not open_folder(track.source_uri).is_remote


def read_headers(tracks: Sequence[Track], *, on_progress: Callable[[int], None] = lambda done: None) -> list[Header]:
    """Read the beginnings of local files, of which `can_read_headers` holds, and their sidecars."""
    headers = []
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        for header in pool.map(read_header, tracks):
            headers.append(header)
            on_progress(len(headers))
    return headers


def read_header(track: Track) -> Header:
    """Read metadata, and decode the first samples; failures are those that the whole file would have."""
    source = open_folder(track.source_uri)
    facts: dict[str, Any] = {}
    try:
        with Path(source.file_path(track.path)).open("rb") as stream:
            facts = read_metadata(track, stream, source)
            stream.seek(0)
            with closing(cast("Generator[Sound, None, None]", iter_sounds(stream))) as sounds:
                for sound in sounds:
                    next(iter(sound.iter_blocks(HEADER_FRAMES)), None)
                    break
    except AudioError as error:
        return Header(facts, _make_failure("decode", error))
    except ValueError as error:
        return Header(facts, _make_failure("describe", error))
    except OSError as error:
        return Header(facts, IngestFailure("fetch", type(error).__name__, (error.strerror or str(error)).lower()))
    except Exception:  # of any class: the whole file decides, and one file must not end the run
        return Header(facts)
    return Header(facts)


def _make_failure(stage: str, error: Exception) -> IngestFailure:
    return IngestFailure(stage, type(error).__name__, " ".join(str(error).split()))


def find_bad_headers(
    tracks: Iterable[Track], *, on_progress: Callable[[int], None] = lambda done: None
) -> list[RejectedFile]:
    """Return the local files among the tracks that cannot be used, as far as their beginnings tell."""
    local = [track for track in tracks if can_read_headers(track)]
    headers = read_headers(local, on_progress=on_progress)
    return [
        RejectedFile(track.file, track.uri, header.failure) for track, header in zip(local, headers) if header.failure
    ]


def group_by_reason(bad: Iterable[RejectedFile]) -> dict[str, list[str]]:
    """Return reason -> files, the most frequent reason first; numbers and names in messages do not count."""
    groups: dict[tuple[str, str], list[RejectedFile]] = {}
    for rejected in bad:
        groups.setdefault((rejected.failure.stage, _generalize(rejected)), []).append(rejected)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {_name_group(reason, files): [b.file for b in files] for reason, files in ordered}


def _name_group(reason: tuple[str, str], files: list[RejectedFile]) -> str:
    stage, text = reason
    return f"{stage}: {files[0].failure.message if len(files) == 1 else text}"


def _generalize(rejected: RejectedFile) -> str:
    """A message without what differs from file to file: the file's own name, quoted values and numbers."""
    text = rejected.failure.message
    for own in (rejected.file, PurePosixPath(rejected.file).stem):
        text = text.replace(own, "…") if len(own) > 1 else text
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    return re.sub(r"(?<![\w-])\d[\d.]*", "…", text)
