"""The vetted list of public-domain pieces: files of the music21 corpus with their key, metre and tune family.

repertoire.tsv in this folder holds metadata only (no notes): planning parses no music, and the split knows which
files share a melody. `python -m tests.support.vetting` generates it from the installed music21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from presto_core.extras import find_package_folder, import_extra

INDEX_FILE = Path(__file__).with_name("repertoire.tsv")
FOLDERS = {"bach": "bach", "ryan": "ryansMammoth"}


@dataclass(frozen=True, slots=True)
class RepertoireEntry:
    """One usable file; `tune` is its melody family, which the split keeps together."""

    collection: str
    file: str
    tune: str
    title: str
    composer: str
    key: str
    beat_quarters: float
    beats_per_bar: int
    pickup_beats: float
    bars: int


def find_corpus_folder(collection: str) -> Path:
    """Return the installed folder of a collection, without importing music21."""
    path = find_package_folder("music21", "the corpus's public-domain music") / "corpus" / FOLDERS[collection]
    if not path.is_dir():
        raise FileNotFoundError(f"the installed music21 lacks corpus/{FOLDERS[collection]}; install the pinned version")
    return path


@lru_cache(maxsize=1)
def load_index() -> tuple[RepertoireEntry, ...]:
    """Read the shipped list, in its stable order."""
    header, *rows = INDEX_FILE.read_text(encoding="utf-8").splitlines()
    if header.split("\t") != [field.name for field in fields(RepertoireEntry)]:
        raise ValueError(f"{INDEX_FILE.name} has columns {header!r}; regenerate it: python -m tests.support.vetting")
    return tuple(_parse_entry(row.split("\t")) for row in rows)


def _parse_entry(cells: Sequence[str]) -> RepertoireEntry:
    *text_cells, beat_quarters, beats_per_bar, pickup_beats, bars = cells
    return RepertoireEntry(*text_cells, float(beat_quarters), int(beats_per_bar), float(pickup_beats), int(bars))  # type: ignore[call-arg,arg-type]


def parse_file(collection: str, file: str) -> Any:
    """Parse a corpus file with music21 (no pickle is read or written)."""
    converter = import_extra("music21.converter", "reading a piece of the corpus")
    return converter.parse(find_corpus_folder(collection) / file, forceSource=True, storePickle=False)


def find_entries(collection: str) -> tuple[RepertoireEntry, ...]:
    return tuple(entry for entry in load_index() if entry.collection == collection)


def find_entry(collection: str, file: str) -> RepertoireEntry:
    for entry in find_entries(collection):
        if entry.file == file:
            return entry
    raise ValueError(f"{collection}/{file} is not a vetted piece; use one of those in {INDEX_FILE.name}")
