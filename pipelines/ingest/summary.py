"""What an ingest took, skipped and quarantined, in lines of a terminal's width that say what to do next."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.console import LOG_WIDTH, make_printable
from pipelines.data.layout import SPLITS
from pipelines.ingest.bad_files import MAX_FILES_NAMED, group_by_reason
from pipelines.ingest.curation import CuratedTracks, RejectedFile
from pipelines.ingest.field_names import describe_ignored
from pipelines.ingest.sources import Track

LABEL_WIDTH = 13
WIDTH = LOG_WIDTH - len("ingest: ")
MAX_REASONS = 6
MAX_LICENCES = 5
CAPTION_SOURCES = {"manifest": "manifest", "sidecar": "sidecars", "tags": "tags", "name": "file names"}


def describe_result(info: Mapping[str, Any], curated: CuratedTracks, skipped: Counter[str]) -> list[str]:
    """Lines about a data set: what was taken, how it is described, what was skipped, and what was quarantined."""
    tracks = [entry.track for entry in curated.entries]
    rows, hours = info["rows"], info["hours"]
    total = f"{_count(len(tracks), 'file')}, {_count(sum(rows.values()), 'row')}, {_format_hours(sum(hours.values()))}"
    lines = _label("taken", total)
    files = Counter(track.split for track in tracks)
    for split in SPLITS:
        amounts = f"{_count(files[split], 'file')}, {_count(rows.get(split, 0), 'row')}, "
        lines += _label("", f"{split}: {amounts}{_format_hours(hours.get(split, 0.0))}")
    lines += describe_metadata(tracks)
    left_out = dict(skipped) | {
        "windows of silence": info["silent_windows"],
        "files with the same bytes as another": info["doubles"],
    }
    lines += describe_skipped(left_out)
    return lines + describe_bad(curated.bad)


def describe_metadata(tracks: Sequence[Track]) -> list[str]:
    """Where captions come from, of how many files tempo and key are known, and under which licences they are."""
    if not tracks:
        return []
    sources = Counter(CAPTION_SOURCES.get(track.caption_source, "elsewhere") for track in tracks)
    known = {"tempo": sum(track.tempo_bpm is not None for track in tracks), "key": sum(bool(t.key) for t in tracks)}
    licences = Counter(track.licence or "not stated" for track in tracks)
    named = [f"{licence} ({count})" for licence, count in licences.most_common(MAX_LICENCES)]
    named += [f"and {len(licences) - MAX_LICENCES} more"] if len(licences) > MAX_LICENCES else []
    return [
        *_label("captions", "from " + ", ".join(f"{source} ({count})" for source, count in sources.most_common())),
        *_label("known", ", ".join(f"{name} of {count}" for name, count in known.items()) + f" of {len(tracks)} files"),
        *_label("licences", ", ".join(named)),
    ]


def describe_skipped(skipped: Mapping[str, int]) -> list[str]:
    """What was left out on purpose, by reason; no line if there is nothing."""
    parts = [f"{count:,} {_singular(reason) if count == 1 else reason}" for reason, count in skipped.items() if count]
    return _label("skipped", "; ".join(parts)) if parts else []


def describe_ignored_keys(ignored_keys: Counter[str]) -> list[str]:
    """Keys of sidecars that are not read, each with what it probably means; no line if there are none."""
    named = [f"{describe_ignored([key])} in {_count(count, 'file')}" for key, count in sorted(ignored_keys.items())]
    return _label("not read", "keys of sidecars: " + ", ".join(named)) if named else []


def describe_bad(bad: Sequence[RejectedFile]) -> list[str]:
    """What was quarantined, by reason with up to five names each; no line if there is nothing."""
    if not bad:
        return []
    lines = _label("quarantined", _count(len(bad), "file"))
    groups = group_by_reason(bad)
    for reason, files in list(groups.items())[:MAX_REASONS]:
        more = f" and {len(files) - MAX_FILES_NAMED} more" if len(files) > MAX_FILES_NAMED else ""
        lines += _wrap(f"{len(files)} {reason}", indent=2)
        lines += _wrap(", ".join(files[:MAX_FILES_NAMED]) + more, indent=6)
    if len(groups) > MAX_REASONS:
        rest = sum(len(files) for files in list(groups.values())[MAX_REASONS:])
        lines += _wrap(f"{rest} for {len(groups) - MAX_REASONS} other reasons", indent=2)
    return lines


def _label(label: str, text: str) -> list[str]:
    wrapped = _wrap(text, indent=LABEL_WIDTH)
    return [f"{label:{LABEL_WIDTH}}{wrapped[0].strip()}", *wrapped[1:]]


def _wrap(text: str, *, indent: int) -> list[str]:
    pad = " " * indent
    lines: Iterable[str] = textwrap.wrap(
        make_printable(text), WIDTH, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False
    )
    return list(lines) or [pad]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _singular(reason: str) -> str:
    return re.sub(r"\b(file|window)s\b", r"\1", reason, count=1)


def _format_hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 0.1 else f"{hours * 60:.1f} min"
