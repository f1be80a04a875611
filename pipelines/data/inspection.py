"""Inspect a data set: describe its manifest, verify every byte, and recompute its statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.console import progress_bar
from pipelines.data.dataset import LatentDataset
from pipelines.data.layout import ALL_SPLITS, QUARANTINE, TRACKS
from pipelines.data.shards import FullRows, Shard, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError, read_file
from presto_core.audio.latent_stats import LatentStats
from presto_core.diffusion.conditioning import UNKNOWN_KEY

MAX_PROBLEMS_NAMED = 5  # problems that a message names
STATS_TOLERANCE = 1e-3  # for statistics against the manifest's, which sum in another order


@dataclass
class VerificationResult:
    """Counts of what was verified, and the problems found."""

    shards: int = 0
    rows: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


def describe(dataset: LatentDataset) -> dict[str, str]:
    """Describe the manifest in readable form."""
    info, manifest = dataset.info, dataset.manifest
    latents, codec, text = info["latents"], info["codec"], info["text"]
    return {
        "id": str(manifest.get("id")),
        "where": dataset.uri,
        "made": f"{manifest.get('created')} by presto {manifest.get('made_with', {}).get('presto-distill')}",
        "rows": ", ".join(f"{n} {split} ({info['hours'][split]:.2f} h)" for split, n in info["rows"].items()),
        "shards": ", ".join(f"{len(_shards(dataset, split))} {split}" for split in dataset.splits),
        "latents": f"{latents['channels']} channels x {latents['frames']} frames, "
        f"{codec['sample_rate_hz'] / codec['hop']:.2f} frames per second",
        "codec": f"{codec['kind']} {codec['digest'][:12]}",
        "text encoder": f"{text['kind']} {text['digest'][:12]}, {text['dim']} wide, {text['max_tokens']} tokens",
        "licences": ", ".join(info.get("licences", [])) or "not stated",
        "captions": _describe_captions(info),
        "left out": f"{info.get('silent_windows', 0)} silent windows, {info.get('bad_files', 0)} bad files, "
        f"{info.get('doubles', 0)} duplicate files",
        **({"note": dataset.test_split_note} if dataset.test_split_note else {}),
    }


def _describe_captions(info: dict[str, Any]) -> str:
    if "captioned_rows" not in info:
        return "not counted"
    fraction = info["captioned_rows"] / sum(info["rows"].values())
    sources = ", ".join(f"{count} from {source}" for source, count in info["caption_sources"].items())
    return f"{fraction:.1%} of rows; of tracks, {sources}"


def list_splits(dataset: LatentDataset) -> dict[str, dict[str, Any]]:
    """Count the compositions, tracks, rows and hours of each split, and list the names of its compositions.

    Raises:
        StoreError: a composition is in two splits, or the list of tracks cannot be read.
    """
    content = read_file(open_folder(dataset.uri), TRACKS, dataset.manifest)
    tracks = [json.loads(line) for line in content.decode().splitlines()]
    splits = {}
    for split in dataset.splits:
        split_tracks = [track for track in tracks if track["split"] == split]
        names = sorted({track["composition"] for track in split_tracks})
        hours = round(sum(track["seconds"] for track in split_tracks) / 3600, 3)
        rows = sum(track["rows"] for track in split_tracks)
        splits[split] = {
            "compositions": len(names), "tracks": len(split_tracks), "rows": rows, "hours": hours, "names": names
        }  # fmt: skip
    if leaks := _describe_leaks({split: set(counts["names"]) for split, counts in splits.items()}):
        raise StoreError(f"{leaks[0]}; ingest again")
    return splits


def _describe_leaks(compositions: dict[str, set[str]]) -> list[str]:
    """Name every composition that is in two of the splits."""
    return [
        f"composition {name!r} is in two splits, {one} and {other}"
        for one, other in combinations(compositions, 2)
        for name in sorted(compositions[one] & compositions[other])
    ]


def list_quarantine(dataset: LatentDataset) -> list[dict[str, str]]:
    """List the files that ingest rejected: uri, file, stage, error, message."""
    content = read_file(open_folder(dataset.uri), QUARANTINE, dataset.manifest)
    return [dict(row) for row in pq.read_table(pa.BufferReader(content)).to_pylist()]


def verify(dataset: LatentDataset) -> VerificationResult:
    """Read every file and compare it with the manifest.

    Raises:
        StoreError: a file is missing, damaged or differs from the manifest; the message names the first problems.
    """
    result, compositions = VerificationResult(), dict[str, set[str]]()
    shape = [dataset.info["latents"][key] for key in ("channels", "frames")]
    for shard, rows in _read_shards(dataset, result.problems):
        result.shards += 1
        result.rows += len(rows)
        if list(rows.latents.shape[1:]) != shape:
            result.problems.append(f"{shard.file} has latents {list(rows.latents.shape[1:])}, expected {shape}")
        if not np.isfinite(rows.latents).all():
            result.problems.append(f"{shard.file} has values that are not finite")
        compositions.setdefault(shard.split, set()).update(map(str, rows.composition))
    result.problems += _describe_leaks(compositions)
    for name in dataset.manifest.get("files", {}):
        try:
            read_file(open_folder(dataset.uri), name, dataset.manifest)
            result.files += 1
        except StoreError as error:
            result.problems.append(str(error))
    if result.problems:
        named, more = "; ".join(result.problems[:MAX_PROBLEMS_NAMED]), len(result.problems) - MAX_PROBLEMS_NAMED
        raise StoreError(
            f"data set {dataset.manifest.get('id')} is damaged: {named}"
            + (f"; and {more} more" if more > 0 else "")
            + "; restore these files, or ingest again into another storage.root"
        )
    return result


def compute_stats(dataset: LatentDataset) -> dict[str, str]:
    """Compute the statistics of the rows and compare them with the manifest.

    Raises:
        StoreError: a shard cannot be read.
    """
    problems: list[str] = []
    parts: list[LatentStats] = []
    tally = dict.fromkeys(("rows", "captioned", "tempo", "key", "doubles"), 0)
    captions, seen_hashes = set[str](), set[bytes]()
    for shard, rows in _read_shards(dataset, problems):
        if shard.split == "train":
            parts.append(LatentStats.from_latents(rows.latents))
        tally["rows"] += len(rows)
        tally["captioned"] += sum(bool(str(c).strip()) for c in rows.caption)
        tally["tempo"] += int(np.nan_to_num(rows.tempo_bpm).astype(bool).sum())
        tally["key"] += int((rows.key != UNKNOWN_KEY).sum())
        captions |= set(map(str, rows.caption))
        hashes = [hashlib.sha256(row.tobytes()).digest() for row in rows.latents]
        tally["doubles"] += len(hashes) - len(set(hashes) - seen_hashes)
        seen_hashes |= set(hashes)
    if problems:
        raise StoreError(problems[0])
    return {**_describe_moments(LatentStats.merge_all(parts), dataset), **_describe_coverage(tally, len(captions))}


def _describe_moments(stats: LatentStats, dataset: LatentDataset) -> dict[str, str]:
    """Describe mean and standard deviation of the training rows, before and after the manifest's normalization."""
    mean, std = (np.array(dataset.info["latents"][key]) for key in ("mean", "std"))
    shift = float(np.abs((stats.mean - mean) / std).max())
    sigma_data = float(np.sqrt((stats.m2 / stats.count / std**2).mean()))
    verdict = (
        "matches the manifest"
        if shift < STATS_TOLERANCE and abs(sigma_data - 1) < STATS_TOLERANCE
        else "DIFFERS from the manifest"
    )
    return {
        "mean by channel": f"{stats.mean.min():.3f} ... {stats.mean.max():.3f}",
        "deviation": f"{stats.std:.4f}",
        "normalised": f"largest mean {shift:.1e}, sigma_data {sigma_data:.4f}: {verdict}",
    }


def _describe_coverage(tally: dict[str, int], captions: int) -> dict[str, str]:
    rows = max(tally["rows"], 1)
    labels = {"captioned": "with a caption", "tempo": "with a tempo", "key": "with a key"}
    return {
        "rows": str(tally["rows"]),
        **{label: f"{tally[name] / rows:.1%}" for name, label in labels.items()},
        "different captions": str(captions),
        "doubles": f"{tally['doubles']} rows have the same latents as an earlier row",
    }


def _read_shards(dataset: LatentDataset, problems: list[str]) -> Iterator[tuple[Shard, FullRows]]:
    """Yield every shard with its rows; read errors are added to `problems`."""
    shards = [shard for split in ALL_SPLITS for shard in _shards(dataset, split)]
    folder = open_folder(dataset.uri)
    with progress_bar("dataset", len(shards)) as bar:
        for number, shard in enumerate(shards, 1):
            try:
                rows = FullRows.from_table(read_table(folder, shard, columns=FullRows.columns()))
            except StoreError as error:
                problems.append(str(error))
            else:
                yield shard, rows
            bar.update(number, shard.file)


def _shards(dataset: LatentDataset, split: str) -> list[Shard]:
    """Return the shards of a split, which can be empty."""
    return [Shard(**s) for s in dataset.info["shards"] if s["split"] == split]
