"""A corpus folder: its identity, its completeness and its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.corpus.clips import AUDIO_FOLDER, ROWS_FOLDER, Row, file_sha256, write_atomically
from pipelines.corpus.index import INDEX_FILE
from pipelines.corpus.plan import CorpusSettings
from pipelines.corpus.render import SAMPLE_RATE_HZ, SOUNDFONT_LICENCE, find_soundfont
from pipelines.corpus.repertoire import CORPUS_NOTE, LICENCES
from presto_core.artifacts.durable import make_folders

RECIPE_VERSION = 3  # raise when the same settings would sound different, or have other captions
MANIFEST_FILE = "manifest.jsonl"
CORPUS_FILE = "corpus.json"
VERSIONED_PACKAGES = ("music21", "mido", "midirenderer", "soundfile", "soxr")

JsonObject = dict[str, Any]


def make_identity(settings: CorpusSettings) -> JsonObject:
    """Return everything that determines the corpus's bytes; equal identities give equal manifests."""
    return {
        "recipe": RECIPE_VERSION,
        **{f"settings.{name}": value for name, value in asdict(settings).items()},
        **{f"version.{name}": version(name) for name in VERSIONED_PACKAGES},
        "soundfont_sha256": file_sha256(find_soundfont()),
        "repertoire_sha256": file_sha256(INDEX_FILE),
    }


def _identity_hash(identity: JsonObject) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _describe_differences(actual: JsonObject, expected: JsonObject) -> str:
    changed = [name for name in sorted(actual.keys() | expected.keys()) if actual.get(name) != expected.get(name)]
    return ", ".join(f"{name}={actual.get(name)} (requested: {expected.get(name)})" for name in changed)


def claim_folder(folder: Path, identity: JsonObject) -> JsonObject:
    """Return the folder's corpus.json, written first if the folder is new; ValueError if it holds something else."""
    record_file = folder / CORPUS_FILE
    hint = "choose another folder, or delete this one to rebuild it"
    if record_file.is_file():
        record: JsonObject = json.loads(record_file.read_bytes())
        if record.get("identity") != identity:
            changed = _describe_differences(record.get("identity", {}), identity)
            raise ValueError(f"{folder} holds a corpus with {changed}; {hint}")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not a corpus: it is not empty and has no {CORPUS_FILE}; {hint}")
    else:
        make_folders(folder)
        record = write_corpus_file(folder, identity, totals=None)
    for name in (AUDIO_FOLDER, ROWS_FOLDER):
        (folder / name).mkdir(exist_ok=True)
    return record


def write_corpus_file(folder: Path, identity: JsonObject, totals: JsonObject | None) -> JsonObject:
    """Write corpus.json; `totals` is None until the corpus is complete."""
    record = {
        "settings_hash": _identity_hash(identity),
        "identity": identity,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "licences": {**LICENCES, "music21_corpus": CORPUS_NOTE, "soundfont": SOUNDFONT_LICENCE},
        "totals": totals,
    }
    write_atomically(folder / CORPUS_FILE, json.dumps(record, indent=2, ensure_ascii=False).encode())
    return record


def read_manifest(folder: str | Path) -> list[Row]:
    """Read the rows of a complete corpus, in order; FileNotFoundError if the corpus is incomplete."""
    with (Path(folder) / MANIFEST_FILE).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_complete_rows(folder: Path, record: JsonObject) -> list[Row] | None:
    """Return the rows if the manifest has the recorded hash and all its files exist, otherwise None."""
    manifest, totals = folder / MANIFEST_FILE, record.get("totals")
    if totals is None or not manifest.is_file() or file_sha256(manifest) != totals["manifest_sha256"]:
        return None
    rows = read_manifest(folder)
    return rows if all((folder / row["file"]).is_file() for row in rows) else None


def total_minutes(rows: Sequence[Row]) -> float:
    """Return the minutes of audio in the rows."""
    return float(sum(row["duration_seconds"] for row in rows) / 60)


def count_splits(rows: Sequence[Row]) -> dict[str, JsonObject]:
    """Count the clips, minutes and distinct compositions of each split that has rows."""
    counts = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        members = [row for row in rows if row["split"] == split]
        compositions = {row["composition_id"] for row in members}
        counts[split] = {"clips": len(members), "minutes": total_minutes(members), "compositions": len(compositions)}
    return counts


def finish_folder(folder: Path, identity: JsonObject, rows: Sequence[Row], *, skipped: int) -> None:
    """Write the manifest, then the totals, which mark the corpus as complete."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / MANIFEST_FILE, lines.encode("utf-8"))
    for partial in folder.glob("*/.*.partial"):
        partial.unlink(missing_ok=True)
    totals = {
        "clips": len(rows),
        "minutes": total_minutes(rows),
        "splits": count_splits(rows),
        "skipped": skipped,
        "manifest_sha256": file_sha256(folder / MANIFEST_FILE),
    }
    write_corpus_file(folder, identity, totals)
