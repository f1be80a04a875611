"""Names of the files and splits of a data set."""

from __future__ import annotations

from collections.abc import Container

SPLITS = ("train", "validation", "test")
FORMER_SPLIT = "held_out"  # of data sets made before validation and test were apart
ALL_SPLITS = (*SPLITS, FORMER_SPLIT)
TRACKS, QUARANTINE, DUPLICATES = "tracks.jsonl", "quarantine.parquet", "doubles.json"


def list_splits_of(present: Container[str]) -> tuple[str, ...]:
    """Return the splits that a data set lists, in order: today's three, or `train` and what else a former one has."""
    if FORMER_SPLIT not in present:
        return SPLITS
    return ("train", *(split for split in ALL_SPLITS[1:] if split in present))


def describe_remedy(split: str) -> str:
    """How to ingest again so that a split has rows."""
    if split in ("validation", "test"):
        return f"ingest more music, or raise ingest.{split}_fraction (corpus.{split}_tracks for a corpus of presto)"
    if split == "train":
        return "ingest more music, or lower ingest.validation_fraction and ingest.test_fraction"
    return "only data sets made before validation and test were apart have it"
