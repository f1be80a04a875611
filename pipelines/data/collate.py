"""From rows of a data set to batches: random crops and dropout, normalised latents, conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import TrainColumns
from presto_core.device import send
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.training.state import Batch, Cursor


@dataclass(frozen=True)
class Augmentation:
    """Random crops and dropout: drawn from (seed, epoch, row) only, so independent of resuming and of workers."""

    seed: int
    rows: int
    frames: int
    crop_frames: int
    caption_dropout: float
    attribute_dropout: float

    def for_epoch(self, epoch: int) -> EpochAugmentation:
        rng = np.random.default_rng([self.seed, epoch, 1])
        offsets = rng.integers(0, self.frames - self.crop_frames + 1, self.rows)
        keep_condition = rng.random(self.rows) >= self.caption_dropout
        keep_tempo, keep_key = (rng.random(self.rows) >= self.attribute_dropout for _ in range(2))
        return EpochAugmentation(epoch, offsets, keep_condition, keep_tempo, keep_key, self.crop_frames)


@dataclass(frozen=True)
class EpochAugmentation:
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


class Collate:
    """Turns rows into a Batch on a device, normalized by `mean` and `std` [C] of `stats`."""

    def __init__(self, stats: dict[str, Any], device: torch.device | str, *, pad_captions: bool) -> None:
        self.device, self.pad_captions = torch.device(device), pad_captions
        self.mean = torch.tensor(stats["mean"], dtype=torch.float32, device=device)[:, None]
        self.std = torch.tensor(stats["std"], dtype=torch.float32, device=device)[:, None]

    def __call__(self, rows: TrainColumns, keep_condition: Array, cursor: Cursor) -> Batch:
        latents = torch.from_numpy(rows.latents)
        cond = make_conditioning(rows, pad_captions=self.pad_captions).keep_where(torch.from_numpy(keep_condition))
        if self.device.type == "cuda":
            latents, cond = latents.pin_memory(), cond.pin_memory()
        x0 = send(latents, self.device).float().sub_(self.mean).div_(self.std)
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
        timing=None if rows.timing is None else _to_tensor(rows.timing, torch.float32),
    )


def _to_tensor(values: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(dtype)
