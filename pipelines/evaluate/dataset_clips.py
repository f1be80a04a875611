"""Rows of a data set as training gets them, decoded to audio, with all that is known of each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipelines.data.dataset import LatentDataset
from pipelines.data.layout import TRACKS
from pipelines.data.parquet_tensors import Array, read_array
from pipelines.data.shards import Shard, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError, read_file
from presto_core.audio.codec import Codec
from presto_core.diffusion.conditioning import UNKNOWN_KEY, key_name

COLUMNS = ("latents", "caption", "tempo_bpm", "key", "track", "composition", "start_seconds")


@dataclass(frozen=True)
class DatasetRow:
    """One row of a data set.

    Attributes:
        split, number: where it is: number `number` of its split, from 0.
        latents: [C, T], as stored.
        caption: the one that this row is trained with; others of its track are in `track_info`.
        track_info: what the data set lists of its track: captions, licence, title, ...; empty if it has no such list.
    """

    split: str
    number: int
    latents: Array
    caption: str
    tempo_bpm: float | None
    key: str | None
    track: str
    composition: str
    start_seconds: float
    track_info: dict[str, Any] = field(default_factory=dict)

    @property
    def other_captions(self) -> list[str]:
        """Further wordings of the caption, with which other rows of the track are trained."""
        wordings = [str(self.track_info.get("caption", "")), *map(str, self.track_info.get("captions", ()))]
        return [text for text in dict.fromkeys(wordings) if text and text != self.caption]

    def to_dict(self) -> dict[str, Any]:
        """Return the form for --json."""
        return {
            "split": self.split,
            "row": self.number,
            "caption": self.caption,
            "other_captions": self.other_captions,
            "tempo_bpm": self.tempo_bpm,
            "key": self.key,
            "track": self.track,
            "composition": self.composition,
            "start_seconds": self.start_seconds,
            **{name: str(self.track_info.get(name) or "") for name in ("licence", "title", "composer", "source")},
            "caption_source": str(self.track_info.get("caption_source") or ""),
        }


def draw_rows(dataset: LatentDataset, split: str, *, count: int, seed: int) -> list[DatasetRow]:
    """Draw `count` rows of a split, all equally probable, in the order of the data set; all rows if there are fewer.

    Only the shards that hold them are read.

    Raises:
        StoreError: the split is empty, or a shard is missing or damaged.
    """
    shards = dataset.shards(split)
    total = sum(shard.rows for shard in shards)
    chosen = np.sort(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False))
    tracks = _read_tracks(dataset)
    rows, first = [], 0
    for shard in shards:
        inside = chosen[(chosen >= first) & (chosen < first + shard.rows)] - first
        if len(inside):
            rows += list(_read_rows(dataset, shard, inside.tolist(), first, tracks))
        first += shard.rows
    return rows


def _read_rows(
    dataset: LatentDataset, shard: Shard, numbers: list[int], first: int, tracks: dict[str, dict[str, Any]]
) -> Iterator[DatasetRow]:
    table = read_table(open_folder(dataset.uri), shard, columns=COLUMNS)
    values = {name: read_array(table, name) for name in COLUMNS}
    for number in numbers:
        row = {name: column[number] for name, column in values.items()}
        tempo_bpm, key = float(row["tempo_bpm"]), int(row["key"])
        yield DatasetRow(
            shard.split,
            first + number,
            row["latents"],
            str(row["caption"]),
            tempo_bpm if math.isfinite(tempo_bpm) and tempo_bpm else None,
            None if key == UNKNOWN_KEY else key_name(key),
            str(row["track"]),
            str(row["composition"]),
            float(row["start_seconds"]),
            tracks.get(str(row["track"]), {}),
        )


def _read_tracks(dataset: LatentDataset) -> dict[str, dict[str, Any]]:
    """The data set's list of tracks by name; empty if it has none."""
    if TRACKS not in dataset.manifest.get("files", {}):
        return {}
    lines = read_file(open_folder(dataset.uri), TRACKS, dataset.manifest).decode().split("\n")
    return {track["file"]: track for track in map(json.loads, filter(None, lines))}


@torch.inference_mode()
def decode_row(codec: Codec, row: DatasetRow) -> Array:
    """Audio [A, N] of a row.

    Raises:
        StoreError: its latents are not finite.
    """
    latents = row.latents.astype(np.float32)
    if not np.isfinite(latents).all():
        raise StoreError(f"{row.split} row {row.number} of track {row.track!r} holds NaN or infinite latents")
    audio: Array = codec.decode(torch.from_numpy(latents)[None])[0].cpu().numpy()
    return audio
