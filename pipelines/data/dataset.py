"""The training stream: batches of latents in an order that depends on (seed, epoch) alone, from any place in it on.

`epoch_plan` says which rows a batch is made of, `reading` fetches them; here they are gathered, cropped, normalised and
handed over a few batches ahead. A cursor (epoch, row) says all about where a run stands, for any number of workers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.batch_reader import EpochRead, EpochReader, prefetch
from pipelines.data.epoch_plan import EpochPlan
from pipelines.data.parquet_tensors import Array
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import Reader, read_with_threads
from pipelines.data.shards import Shard, TrainColumns
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError, read_manifest
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.training.state import Batch, Cursor

PREFETCH_BATCHES = 2  # made while a step runs
SIGMA_DATA = 1.0  # latents leave this stream normalised to unit variance


@dataclass(frozen=True)
class LatentDataset:
    """A committed data set, known by its manifest.

    Attributes:
        uri: folder of the artifact.
        manifest: as committed; `manifest["dataset"]` holds shapes, statistics, codec and text encoder.
        skipped: files of shards that are left out because they are damaged.
    """

    uri: str
    manifest: dict[str, Any]
    skipped: tuple[str, ...] = ()

    @property
    def info(self) -> dict[str, Any]:
        return dict(self.manifest["dataset"])

    def shards(self, split: str) -> list[Shard]:
        """Shards of `train` or `held_out`.

        Raises:
            StoreError: the split is empty.
        """
        listed = [Shard(**s) for s in self.info["shards"] if s["split"] == split]
        usable = [shard for shard in listed if shard.file not in self.skipped]
        if not usable:
            raise StoreError(f"data set {self.uri} has no {split!r} rows; ingest more music, or mend held_out_fraction")
        return usable

    @property
    def exclusion_manifest(self) -> dict[str, Any]:
        """What a model trained on this must say in its manifest: damaged shards, if any, that it was not trained on."""
        return {"skipped_shards": list(self.skipped)} if self.skipped else {}

    def exclude_shards(self, files: Iterable[str]) -> LatentDataset:
        """The same data set, less some shards."""
        return replace(self, skipped=(*self.skipped, *files))


def open_dataset(uri: str) -> LatentDataset:
    """Read a data set's manifest.

    Raises:
        StoreError: there is none, or the artifact is of another kind.
    """
    manifest = read_manifest(open_folder(uri))
    if manifest.get("kind") != "dataset":
        raise StoreError(f"{uri} is a {manifest.get('kind')}, not a data set")
    return LatentDataset(uri, manifest)


def stream_batches(
    dataset: LatentDataset,
    *,
    seed: int,
    cursor: Cursor,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    reader: Reader = read_with_threads,
    cache: ShardCache | None = None,
    crop_frames: int = 0,
    caption_dropout: float = 0.0,
) -> Generator[Batch, None, None]:
    """Endless batches of the training split from `cursor` on; each epoch's rows, less what does not fill a batch.

    Args:
        cache: where shards from object storage are kept for later epochs.
        crop_frames: length of a random part of each row; 0 takes rows whole.
        caption_dropout: probability that a row's conditions are withheld (classifier-free guidance).

    Raises:
        StoreError: the split holds fewer rows than one global batch, or a shard is damaged.
        ValueError: crop_frames is more than a row holds, or the batch cannot be shared evenly.
    """
    shards = dataset.shards("train")
    rows, frames = sum(s.rows for s in shards), int(dataset.info["latents"]["frames"])
    if rows < global_batch_size:
        raise StoreError(
            f"the training split of {dataset.uri} has {rows} rows, fewer than one global batch of "
            f"{global_batch_size}; ingest more music or lower global_batch_size"
        )
    if global_batch_size % world_size:
        raise ValueError(f"global_batch_size={global_batch_size} must be a multiple of {world_size} workers")
    if crop_frames > frames:
        raise StoreError(f"data.crop_frames={crop_frames} is more than the {frames} frames of a row of {dataset.uri}")
    epoch_reader = EpochReader(dataset.uri, shards, reader, cache)
    augmentation = _Augmentation(
        seed, rows, frames=frames, crop_frames=crop_frames or frames, caption_dropout=caption_dropout
    )
    collate = _Collate(dataset, device)

    def iter_epochs() -> Iterator[EpochRead]:
        for epoch in count(cursor.epoch):
            plan = EpochPlan.from_shard_rows(
                [s.rows for s in shards], seed=seed, epoch=epoch, global_batch_size=global_batch_size
            )
            first = cursor.row // global_batch_size if epoch == cursor.epoch else 0
            yield EpochRead(epoch, plan, plan.worker_slices(rank=rank, world_size=world_size), first)

    def iter_batches() -> Generator[Batch, None, None]:
        epoch_augmentation: _EpochAugmentation | None = None
        for epoch_read, number, rows, ids in epoch_reader.iter_batches(iter_epochs()):
            if epoch_augmentation is None or epoch_augmentation.epoch != epoch_read.epoch:
                epoch_augmentation = augmentation.for_epoch(epoch_read.epoch)
            last = number + 1 == epoch_read.plan.batches
            after = (
                Cursor(epoch_read.epoch + 1, 0) if last else Cursor(epoch_read.epoch, (number + 1) * global_batch_size)
            )
            yield collate(*epoch_augmentation(rows, ids), after)

    return prefetch(iter_batches, depth=PREFETCH_BATCHES)


@dataclass(frozen=True)
class _Augmentation:
    """What is drawn for a row: from (seed, epoch, row) alone, so that neither resuming nor sharing changes it."""

    seed: int
    rows: int
    frames: int
    crop_frames: int
    caption_dropout: float

    def for_epoch(self, epoch: int) -> _EpochAugmentation:
        rng = np.random.default_rng([self.seed, epoch, 1])
        offsets = rng.integers(0, self.frames - self.crop_frames + 1, self.rows)
        return _EpochAugmentation(epoch, offsets, rng.random(self.rows) >= self.caption_dropout, self.crop_frames)


@dataclass(frozen=True)
class _EpochAugmentation:
    """By row of the data set: where its crop begins, and whether its conditions are told."""

    epoch: int
    crop_offset: Array
    keep_condition: Array
    crop_frames: int

    def __call__(self, rows: TrainColumns, ids: Array) -> tuple[TrainColumns, Array]:
        """Rows cropped, and which of them are told their conditions."""
        if self.crop_frames < rows.latents.shape[2]:
            starts = self.crop_offset[ids]
            cropped = [x[:, a : a + self.crop_frames] for x, a in zip(rows.latents, starts)]
            rows = replace(rows, latents=np.stack(cropped))
        return rows, self.keep_condition[ids]


class _Collate:
    """Rows -> normalised Batch on a device."""

    def __init__(self, dataset: LatentDataset, device: torch.device | str) -> None:
        stats = dataset.info["latents"]
        self.device = torch.device(device)
        self.mean = torch.tensor(stats["mean"], dtype=torch.float32, device=device)[:, None]
        self.std = torch.tensor(stats["std"], dtype=torch.float32, device=device)[:, None]

    def __call__(self, rows: TrainColumns, keep_condition: Array, cursor: Cursor) -> Batch:
        latents = torch.from_numpy(rows.latents)
        if self.device.type == "cuda":
            latents = latents.pin_memory()
        cond = make_conditioning(rows).keep_where(torch.from_numpy(keep_condition))
        x0 = latents.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
        return Batch(x0, cond.to(self.device), cursor)


def make_conditioning(rows: TrainColumns) -> Conditioning:
    """What the rows' captions, tempi and keys tell a network; tokens that no caption of the batch fills are cut off.

    A row of which nothing is known is unconditional.
    """
    num_tokens = int(np.flatnonzero(rows.text_mask.any(axis=0)).max(initial=0)) + 1
    has_condition = rows.text_mask.any(axis=1) | (rows.tempo_bpm > 0) | (rows.key != UNKNOWN_KEY)
    return Conditioning(
        pooled=_to_tensor(rows.text_pooled, torch.float32),
        tokens=_to_tensor(rows.text_tokens[:, :num_tokens], torch.float32),
        mask=_to_tensor(rows.text_mask[:, :num_tokens], torch.bool),
        tempo_bpm=_to_tensor(rows.tempo_bpm, torch.float32),
        key=_to_tensor(rows.key, torch.int64),
        keep=torch.from_numpy(has_condition),
    )


def _to_tensor(values: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(dtype)
