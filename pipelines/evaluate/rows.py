"""The rows of a split in the order that evaluation takes them: a row of each track, then a second one, and so on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.data.dataset import LatentDataset
from pipelines.data.parquet_tensors import Array, read_array
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.diffusion.conditioning import UNKNOWN_KEY

PROMPT_COLUMNS = ("caption", "track", "composition", "tempo_bpm", "key")


@dataclass(frozen=True)
class Prompts:
    """What clips are generated from.

    Attributes:
        caption, track, composition: [N] strings.
        tempo_bpm: [N] float, NaN if unknown.
        key: [N] int, see conditioning.key_index.
    """

    caption: Array
    track: Array
    composition: Array
    tempo_bpm: Array
    key: Array

    def __len__(self) -> int:
        return len(self.caption)

    def take(self, index: Array) -> Prompts:
        return Prompts(*(getattr(self, name)[index] for name in PROMPT_COLUMNS))

    @property
    def groups(self) -> Array:
        """[N] number of each prompt's composition, equal in every report: clips of one are not independent."""
        return number_compositions(self.composition)

    @property
    def tempi(self) -> list[float | None]:
        return [float(bpm) if bpm > 0 else None for bpm in self.tempo_bpm]

    @property
    def keys(self) -> list[int | None]:
        return [int(key) if key != UNKNOWN_KEY else None for key in self.key]


def number_compositions(names: Array) -> Array:
    """[N] names of compositions -> [N] numbers, the same for a name wherever it occurs."""
    digests = (hashlib.blake2b(str(name).encode(), digest_size=7).digest() for name in names)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.int64)


def read_prompts(dataset: LatentDataset, split: str) -> Prompts:
    """The prompts of a split, in evaluation's order; latents are not read."""
    folder = open_folder(dataset.uri)
    table = pa.concat_tables([read_table(folder, s, columns=PROMPT_COLUMNS) for s in dataset.shards(split)])
    prompts = Prompts(*(read_array(table, name) for name in PROMPT_COLUMNS))
    return prompts.take(order_by_track(prompts.track))


def read_rows(dataset: LatentDataset, split: str) -> FullRows:
    """All rows of a split, in evaluation's order."""
    rows = FullRows.concatenate(list(read_with_threads(dataset.uri, dataset.shards(split), FullRows)))
    return rows.take(order_by_track(rows.track))


def order_by_track(tracks: Array) -> Array:
    """Row numbers so that the first n cover as many tracks as n can, as evenly as possible; always the same.

    Args:
        tracks: [N] name of each row's track.
    """
    shuffled = np.random.default_rng(0).permutation(len(tracks))
    names = tracks.astype(str)[shuffled]
    by_name = np.argsort(names, kind="stable")
    _, first, counts = np.unique(names[by_name], return_index=True, return_counts=True)
    turn = np.empty(len(names), dtype=np.int64)
    turn[by_name] = np.arange(len(names)) - np.repeat(first, counts)
    return np.asarray(shuffled[np.argsort(turn, kind="stable")])


def cycle(length: int, start: int, count: int) -> Array:
    """Row numbers start ... start + count, from the beginning again after `length` rows."""
    return np.arange(start, start + count) % length
