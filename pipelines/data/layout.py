"""Names of the files and splits of a data set."""

from __future__ import annotations

SPLITS = ("train", "held_out")
TRACKS, QUARANTINE, DUPLICATES = "tracks.jsonl", "quarantine.parquet", "doubles.json"
