"""The training stream: latents from object storage through Ray Data, in an order that depends on (seed, epoch) alone.

The order is made of windows: a permutation of shards is cut into groups that fit in memory, and the rows of a group
are permuted. Every worker follows the same global order and takes its own share of each global batch, so a cursor
(epoch, row) says all about where a run stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.cluster import READER_CPUS
from pipelines.shards import Array, Rows, read_shard
from pipelines.storage import open_folder
from presto_core.diffusion.conditioning import Conditioning
from presto_core.registry.store import StoreError, read_manifest
from presto_core.training.state import Batch, Cursor

WINDOW_ROWS = 8192  # rows shuffled together; about 300 MB at the demo's shapes
SIGMA_DATA = 1.0  # latents leave this stream normalised to unit variance


@dataclass(frozen=True)
class Shard:
    file: str
    split: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class LatentDataset:
    """A committed data set, known by its manifest.

    Attributes:
        uri: folder of the artifact.
        manifest: as committed; `manifest["dataset"]` holds shapes, statistics, codec and text encoder.
    """

    uri: str
    manifest: dict[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        return dict(self.manifest["dataset"])

    def shards(self, split: str) -> list[Shard]:
        """Shards of `train` or `held_out`.

        Raises:
            StoreError: the split is empty.
        """
        found = [Shard(**s) for s in self.info["shards"] if s["split"] == split]
        if not found:
            raise StoreError(f"data set {self.uri} has no {split!r} rows; ingest more music, or mend held_out_fraction")
        return found


def open_dataset(uri: str) -> LatentDataset:
    """Read a data set's manifest.

    Raises:
        StoreError: there is none, or the artifact is of another kind.
    """
    manifest = read_manifest(open_folder(uri))
    if manifest.get("kind") != "dataset":
        raise StoreError(f"{uri} is a {manifest.get('kind')}, not a data set")
    return LatentDataset(uri, manifest)


Reader = Callable[[str, list[Shard]], Iterable[Rows]]


def read_here(uri: str, shards: list[Shard]) -> Iterator[Rows]:
    """Shards one after another, read in this process."""
    folder = open_folder(uri)
    for shard in shards:
        yield read_shard(folder, file=shard.file, sha256=shard.sha256)


def read_with_ray(uri: str, shards: list[Shard]) -> Iterator[Rows]:
    """Shards in the given order, read ahead by Ray Data tasks."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"uri": uri, "file": s.file, "sha256": s.sha256} for s in shards]
    tasks = ray.data.from_items(items, override_num_blocks=len(items))
    for row in tasks.map(_read_item, num_cpus=READER_CPUS / 2).iter_rows():
        if row["error"]:
            raise StoreError(row["error"])
        yield Rows(**{f.name: np.asarray(row[f.name]) for f in fields(Rows)})


def _read_item(item: dict[str, Any]) -> dict[str, Any]:
    """One shard as one row of arrays: it stays whole on its way through the object store.

    What is wrong with a shard is said in the row: raised here, Ray would run the task again and bury the sentence.
    """
    try:
        return vars(read_shard(open_folder(item["uri"]), file=item["file"], sha256=item["sha256"])) | {"error": ""}
    except StoreError as error:
        return dict.fromkeys(f.name for f in fields(Rows)) | {"error": str(error)}


def stream(
    dataset: LatentDataset,
    *,
    seed: int,
    cursor: Cursor,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    reader: Reader = read_here,
) -> Iterator[Batch]:
    """Endless batches of the training split from `cursor` on; each epoch's rows, less an incomplete last batch.

    Raises:
        ValueError: the split holds fewer rows than one global batch.
    """
    shards = dataset.shards("train")
    rows_per_epoch = sum(s.rows for s in shards)
    if rows_per_epoch < global_batch_size:
        raise StoreError(
            f"the training split of {dataset.uri} has {rows_per_epoch} rows, fewer than one global batch of "
            f"{global_batch_size}; ingest more music or lower global_batch_size"
        )
    to_batch = _Collate(dataset, device)
    windows = _Windows(dataset, shards, seed=seed, reader=reader)
    share = slice(rank, None, world_size)
    while True:
        for rows, position in windows.batches(cursor.epoch, global_batch_size, start=cursor.row):
            last = position + global_batch_size > rows_per_epoch
            after = Cursor(cursor.epoch + 1, 0) if last else Cursor(cursor.epoch, position)
            yield to_batch(rows.take(share), after)
        cursor = Cursor(cursor.epoch + 1, 0)


class _Windows:
    """Rows of an epoch in their global order. A split that fits into one window is read once and kept."""

    def __init__(self, dataset: LatentDataset, shards: list[Shard], *, seed: int, reader: Reader) -> None:
        self.dataset, self.shards, self.seed, self.reader = dataset, shards, seed, reader
        self.kept: Rows | None = None

    def batches(self, epoch: int, size: int, *, start: int) -> Iterator[tuple[Rows, int]]:
        """Global batches and the epoch's position after each, from row `start` (a multiple of `size`) on."""
        position, left_over = start, None
        for rows in self._ordered(epoch, skip=start):
            pending = Rows.cat([left_over, rows]) if left_over is not None else rows
            full = len(pending) // size
            for i in range(full):
                position += size
                yield pending.take(slice(i * size, (i + 1) * size)), position
            left_over = pending.take(slice(full * size, None))

    def _ordered(self, epoch: int, *, skip: int) -> Iterator[Rows]:
        """Windows of permuted rows, without the first `skip` rows; windows skipped whole are not read."""
        rng = np.random.default_rng([self.seed, epoch])
        groups = _grouped([self.shards[i] for i in rng.permutation(len(self.shards))])
        orders = [rng.permutation(sum(s.rows for s in group)) for group in groups]
        first = 0
        while skip >= len(orders[first]):
            skip -= len(orders[first])
            first += 1
        for group, order in zip(self._read(groups[first:]), orders[first:]):
            yield group.take(order[skip:])
            skip = 0

    def _read(self, groups: list[list[Shard]]) -> Iterator[Rows]:
        if len(groups) == 1 and sum(s.rows for s in self.shards) <= WINDOW_ROWS:
            yield self._kept_in_order_of(groups[0])
            return
        shards = iter(self.reader(self.dataset.uri, [s for group in groups for s in group]))
        for group in groups:
            yield Rows.cat([next(shards) for _ in group])

    def _kept_in_order_of(self, group: list[Shard]) -> Rows:
        if self.kept is None:
            self.kept = Rows.cat(list(self.reader(self.dataset.uri, self.shards)))
            starts = np.cumsum([0, *(s.rows for s in self.shards)])
            self.span = {s.file: np.arange(a, b) for s, a, b in zip(self.shards, starts, starts[1:])}
        return self.kept.take(np.concatenate([self.span[s.file] for s in group]))


class _Collate:
    """Rows -> normalised Batch on a device."""

    def __init__(self, dataset: LatentDataset, device: torch.device | str) -> None:
        stats = dataset.info["latents"]
        self.device = device
        self.mean = torch.tensor(stats["mean"], dtype=torch.float32, device=device)[:, None]
        self.std = torch.tensor(stats["std"], dtype=torch.float32, device=device)[:, None]

    def __call__(self, rows: Rows, cursor: Cursor) -> Batch:
        latents = _tensor(rows.latents, np.float32).to(self.device)
        return Batch((latents - self.mean) / self.std, conditioning_of(rows).to(self.device), cursor)


def conditioning_of(rows: Rows) -> Conditioning:
    """What the rows' captions, tempi and keys tell a network; tokens that no caption of the batch fills are cut off."""
    used = int(np.flatnonzero(rows.text_mask.any(axis=0)).max(initial=0)) + 1
    return Conditioning(
        pooled=_tensor(rows.text_pooled, np.float32),
        tokens=_tensor(rows.text_tokens[:, :used], np.float32),
        mask=_tensor(rows.text_mask[:, :used], bool),
        tempo_bpm=_tensor(rows.tempo_bpm, np.float32),
        key=_tensor(rows.key, np.int64),
        keep=torch.ones(len(rows), dtype=torch.bool),
    )


def _tensor(values: Array, dtype: Any) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=dtype))  # copies: what Ray hands out is read-only


def _grouped(shards: list[Shard]) -> list[list[Shard]]:
    """Consecutive shards that together hold at most WINDOW_ROWS rows (or one larger shard alone)."""
    groups: list[list[Shard]] = []
    held = 0
    for shard in shards:
        if not groups or held + shard.rows > WINDOW_ROWS:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += shard.rows
    return groups
