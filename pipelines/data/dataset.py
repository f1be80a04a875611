"""The training stream: batches of latents in an order that depends only on (seed, epoch), from any position.

epoch_plan.py selects the rows of each batch and shard_reader.py reads them; this module crops, normalizes and
prefetches them. A cursor (epoch, row) is the whole state of the stream, for any number of workers.
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
from pipelines.data.layout import FORMER_SPLIT, describe_remedy, list_splits_of
from pipelines.data.parquet_tensors import Array, read_array
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import Reader, read_with_threads
from pipelines.data.shards import Shard, TrainColumns, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError, read_manifest
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.models.model_card import ModelCard
from presto_core.training.state import Batch, Cursor

PREFETCH_BATCHES = 2  # prepared while a step runs
SIGMA_DATA = 1.0  # latents leave this stream normalised to unit variance


@dataclass(frozen=True)
class LatentDataset:
    """A committed data set, described by its manifest.

    Attributes:
        uri: folder of the artifact.
        manifest: as committed; `manifest["dataset"]` holds shapes, statistics, codec and text encoder.
        skipped: files of damaged shards, which are excluded.
    """

    uri: str
    manifest: dict[str, Any]
    skipped: tuple[str, ...] = ()

    @property
    def info(self) -> dict[str, Any]:
        return dict(self.manifest["dataset"])

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this data set lists; data sets made before have `train` and `held_out`."""
        return list_splits_of({shard["split"] for shard in self.info["shards"]})

    @property
    def validation_split(self) -> str:
        """The split whose rows choose weights and settings: `validation`, or `held_out` of a data set made before."""
        return "validation" if "validation" in self.splits else FORMER_SPLIT

    @property
    def test_split(self) -> str:
        """The split whose rows are reported alone: `test`; without rows of it, the one that chooses, which
        `test_split_note` says."""
        return "test" if any(shard["split"] == "test" for shard in self.info["shards"]) else self.validation_split

    @property
    def test_split_note(self) -> str:
        """A line for every table of this data set if it has no test split, otherwise empty."""
        if self.test_split == "test":
            return ""
        name = self.manifest.get("id") or self.uri
        return f"data set {name} has no test split: numbers are of rows that also chose weights or settings"

    def shards(self, split: str) -> list[Shard]:
        """Return the undamaged shards of a split: `train`, `validation`, `test` or the former `held_out`.

        Raises:
            StoreError: the split is empty.
        """
        listed = [Shard(**s) for s in self.info["shards"] if s["split"] == split]
        usable = [shard for shard in listed if shard.file not in self.skipped]
        if not usable:
            raise StoreError(f"data set {self.uri} has no {split!r} rows; {describe_remedy(split)}")
        return usable

    @property
    def exclusion_manifest(self) -> dict[str, Any]:
        """Return the manifest fields of a model trained on this: the damaged shards, if any, that it did not use."""
        return {"skipped_shards": list(self.skipped)} if self.skipped else {}

    def exclude_shards(self, files: Iterable[str]) -> LatentDataset:
        """Return this data set without some shards."""
        return replace(self, skipped=(*self.skipped, *files))

    def read_latents(self, split: str, *, at_least: int) -> Tensor:
        """Return normalised latents [N, C, T] of whole shards, evenly from a split: N >= `at_least`, or all rows."""
        shards = self.shards(split)
        needed = -(-at_least * len(shards) // sum(shard.rows for shard in shards))
        count = min(len(shards), max(1, needed))
        chosen = [shards[i * len(shards) // count] for i in range(count)]
        folder = open_folder(self.uri)
        tables = (read_table(folder, shard, columns=["latents"]) for shard in chosen)
        latents = torch.from_numpy(np.concatenate([read_array(table, "latents") for table in tables]))
        mean, std = (torch.tensor(self.info["latents"][name])[:, None] for name in ("mean", "std"))
        return (latents.float() - mean) / std


def open_dataset(uri: str) -> LatentDataset:
    """Open a data set by reading its manifest.

    Raises:
        StoreError: there is no manifest, or the artifact is of another kind.
    """
    manifest = read_manifest(open_folder(uri))
    if manifest.get("kind") != "dataset":
        raise StoreError(f"artifact {uri} is of kind {manifest.get('kind')}; use one of kind dataset")
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
    attribute_dropout: float = 0.0,
    pad_captions: bool = False,
    card: ModelCard | None = None,
) -> Generator[Batch, None, None]:
    """Yield endless batches of the training split, starting at `cursor`; incomplete last batches are dropped.

    Args:
        cache: keeps shards from object storage for later epochs.
        crop_frames: length of a random crop of each row; 0 uses whole rows.
        caption_dropout: probability that a row's conditions are dropped (classifier-free guidance).
        attribute_dropout: probability that a row's tempo, and apart from it its key, is withheld.
        pad_captions: keep padding that no row of a batch needs, so that all batches have one shape (compiled networks).
        card: of the model to train, whose statistics normalize latents; None for those of the data set.

    Raises:
        StoreError: the split has fewer rows than one global batch, crop_frames exceeds a row, or a shard is damaged.
        ValueError: global_batch_size is not a multiple of world_size.
    """
    shards = dataset.shards("train")
    rows, frames = sum(s.rows for s in shards), int(dataset.info["latents"]["frames"])
    if rows < global_batch_size:
        raise StoreError(
            f"the training split of {dataset.uri} has {rows} rows, less than one global batch "
            f"(global_batch_size={global_batch_size}); ingest more music or lower global_batch_size"
        )
    if global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide among {world_size} workers; "
            f"use a multiple of {world_size}"
        )
    if crop_frames > frames:
        raise StoreError(f"data.crop_frames={crop_frames} exceeds the rows of {dataset.uri}; use at most {frames}")
    epoch_reader = EpochReader(dataset.uri, shards, reader, cache)
    augmentation = _Augmentation(
        seed,
        rows,
        frames=frames,
        crop_frames=crop_frames or frames,
        caption_dropout=caption_dropout,
        attribute_dropout=attribute_dropout,
    )
    collate = _Collate(card.to_dict() if card else dataset.info["latents"], device, pad_captions=pad_captions)

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
    """Random crops and dropout: drawn from (seed, epoch, row) only, so independent of resuming and of workers."""

    seed: int
    rows: int
    frames: int
    crop_frames: int
    caption_dropout: float
    attribute_dropout: float

    def for_epoch(self, epoch: int) -> _EpochAugmentation:
        rng = np.random.default_rng([self.seed, epoch, 1])
        offsets = rng.integers(0, self.frames - self.crop_frames + 1, self.rows)
        keep_condition = rng.random(self.rows) >= self.caption_dropout
        keep_tempo, keep_key = (rng.random(self.rows) >= self.attribute_dropout for _ in range(2))
        return _EpochAugmentation(epoch, offsets, keep_condition, keep_tempo, keep_key, self.crop_frames)


@dataclass(frozen=True)
class _EpochAugmentation:
    """The crop offset of each row of the data set, and whether its conditions, its tempo and its key are kept."""

    epoch: int
    crop_offset: Array
    keep_condition: Array
    keep_tempo: Array
    keep_key: Array
    crop_frames: int

    def __call__(self, rows: TrainColumns, ids: Array) -> tuple[TrainColumns, Array]:
        """Crop rows and withhold attributes; also return which rows keep their conditions."""
        if self.crop_frames < rows.latents.shape[2]:
            starts = self.crop_offset[ids]
            cropped = [x[:, a : a + self.crop_frames] for x, a in zip(rows.latents, starts)]
            rows = replace(rows, latents=np.stack(cropped))
        tempo = np.where(self.keep_tempo[ids], rows.tempo_bpm, np.float32(np.nan))
        key = np.where(self.keep_key[ids], rows.key, np.int8(UNKNOWN_KEY))
        rows = replace(rows, tempo_bpm=tempo, key=key)
        return rows, self.keep_condition[ids]


class _Collate:
    """Turns rows into a Batch on a device, normalized by `mean` and `std` [C] of `stats`."""

    def __init__(self, stats: dict[str, Any], device: torch.device | str, *, pad_captions: bool) -> None:
        self.device, self.pad_captions = torch.device(device), pad_captions
        self.mean = torch.tensor(stats["mean"], dtype=torch.float32, device=device)[:, None]
        self.std = torch.tensor(stats["std"], dtype=torch.float32, device=device)[:, None]

    def __call__(self, rows: TrainColumns, keep_condition: Array, cursor: Cursor) -> Batch:
        latents = torch.from_numpy(rows.latents)
        if self.device.type == "cuda":
            latents = latents.pin_memory()
        cond = make_conditioning(rows, pad_captions=self.pad_captions).keep_where(torch.from_numpy(keep_condition))
        x0 = latents.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
        return Batch(x0, cond.to(self.device), cursor)


def make_conditioning(rows: TrainColumns, *, pad_captions: bool = False) -> Conditioning:
    """Make the conditioning from the rows' captions, tempi and keys, cut to the longest caption unless padded.

    A row without caption, tempo and key is unconditional.
    """
    longest = int(np.flatnonzero(rows.text_mask.any(axis=0)).max(initial=0)) + 1
    num_tokens = rows.text_mask.shape[1] if pad_captions else longest
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
