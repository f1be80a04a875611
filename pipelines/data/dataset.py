"""The training stream: batches of latents in an order that depends only on (seed, epoch), from any position.

epoch_plan.py selects the rows of each batch and shard_reader.py reads them; this module crops, normalizes and
prefetches them. A cursor (epoch, row) is the whole state of the stream, for any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.batch_reader import EpochRead, EpochReader, prefetch
from pipelines.data.collate import Augmentation, Collate, EpochAugmentation
from pipelines.data.epoch_plan import EpochPlan
from pipelines.data.layout import FORMER_SPLIT, describe_remedy, list_splits_of
from pipelines.data.parquet_tensors import read_array
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import Reader, read_with_threads
from pipelines.data.shards import Shard, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.formats import UnsafeArtifactError
from presto_core.artifacts.store import StoreError, read_manifest
from presto_core.models.model_card import ModelCard
from presto_core.training.state import Batch, Cursor

MAX_SIZE = 2**31  # rows of a shard, channels and frames
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

    def iter_latents(self, split: str, *, at_least: int | None = None) -> Iterator[Tensor]:
        """Yield latents [N, C, T] fp32 at the codec's scale, shard by shard.

        Args:
            at_least: rows to read, as whole shards evenly from the split; None reads all.
        """
        shards = self.shards(split)
        needed = len(shards) if at_least is None else -(-at_least * len(shards) // sum(s.rows for s in shards))
        count, folder = min(len(shards), max(1, needed)), open_folder(self.uri)
        for shard in (shards[i * len(shards) // count] for i in range(count)):
            latents = read_array(read_table(folder, shard, columns=["latents"]), "latents")
            yield torch.from_numpy(latents.astype(np.float32))


def open_dataset(uri: str) -> LatentDataset:
    """Open a data set by reading its manifest.

    Raises:
        StoreError: there is no manifest, or the artifact is of another kind.
    """
    manifest = read_manifest(open_folder(uri))
    if manifest.get("kind") != "dataset":
        raise StoreError(f"artifact {uri} is of kind {manifest.get('kind')}; use one of kind dataset")
    _check_info(manifest.get("dataset"), uri)
    return LatentDataset(uri, manifest)


def _check_info(info: Any, uri: str) -> None:
    """Check the parts of a data set's record that sizes of memory and of numbers follow from; UnsafeArtifactError."""
    try:
        latents = info["latents"]
        sizes = [latents["channels"], latents["frames"], *(Shard(**shard).rows for shard in info["shards"])]
        stats = [*latents["mean"], *latents["std"]]
        is_plausible = all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes)
        is_plausible &= len(stats) == 2 * latents["channels"] and all(map(math.isfinite, stats))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UnsafeArtifactError(f"the manifest of data set {uri} is damaged ({reason}); do not use it") from None
    if not is_plausible:
        raise UnsafeArtifactError(
            f"the manifest of data set {uri} is damaged: sizes are not between 1 and {MAX_SIZE}, or statistics are not "
            "finite numbers of all channels; do not use it"
        )


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
    augmentation = Augmentation(
        seed,
        rows,
        frames=frames,
        crop_frames=crop_frames or frames,
        caption_dropout=caption_dropout,
        attribute_dropout=attribute_dropout,
    )
    collate = Collate(card.to_dict() if card else dataset.info["latents"], device, pad_captions=pad_captions)

    def iter_epochs() -> Iterator[EpochRead]:
        for epoch in count(cursor.epoch):
            plan = EpochPlan.from_shard_rows(
                [s.rows for s in shards], seed=seed, epoch=epoch, global_batch_size=global_batch_size
            )
            first = cursor.row // global_batch_size if epoch == cursor.epoch else 0
            yield EpochRead(epoch, plan, plan.worker_slices(rank=rank, world_size=world_size), first)

    def iter_batches() -> Generator[Batch, None, None]:
        epoch_augmentation: EpochAugmentation | None = None
        for epoch_read, number, rows, ids in epoch_reader.iter_batches(iter_epochs()):
            if epoch_augmentation is None or epoch_augmentation.epoch != epoch_read.epoch:
                epoch_augmentation = augmentation.for_epoch(epoch_read.epoch)
            last = number + 1 == epoch_read.plan.batches
            after = (
                Cursor(epoch_read.epoch + 1, 0) if last else Cursor(epoch_read.epoch, (number + 1) * global_batch_size)
            )
            yield collate(*epoch_augmentation(rows, ids), after)

    return prefetch(iter_batches, depth=PREFETCH_BATCHES)
