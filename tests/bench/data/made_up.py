"""Committed data sets of made-up latents on S3, and copies of the same rows in the formats of other loaders."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows, to_parquet, write_shard
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import commit_artifact
from presto_core.artifacts.store import write_bytes

ROWS_PER_SHARD = 128
ROWS_PER_TRACK = 16  # of 12 s: a track of three minutes


@dataclass(frozen=True)
class RowShape:
    """What a row holds; every value is float16.

    Noise does not compress, so a row takes the same bytes in every format.
    """

    channels: int
    frames: int
    tokens: int
    text_dim: int

    @property
    def row_bytes(self) -> int:
        return 2 * (self.channels * self.frames + (self.tokens + 1) * self.text_dim)


LAPTOP = RowShape(channels=64, frames=258, tokens=40, text_dim=384)  # the laptop preset: 12 s and MiniLM
NARROW = RowShape(channels=32, frames=32, tokens=4, text_dim=128)  # many rows in few bytes


def rows_of(shape: RowShape, seed: int, count: int = ROWS_PER_SHARD) -> FullRows:
    """One shard's rows, with captions of a quarter to all of the tokens, one for the rows of a track."""
    rng = np.random.default_rng(seed)
    tracks = np.arange(count) // ROWS_PER_TRACK
    used = np.r_[shape.tokens, rng.integers(shape.tokens // 4, shape.tokens + 1, tracks[-1])][tracks]
    return FullRows(
        latents=_noise(rng, count, shape.channels, shape.frames),
        text_pooled=_noise(rng, tracks[-1] + 1, shape.text_dim)[tracks],
        text_tokens=_noise(rng, tracks[-1] + 1, shape.tokens, shape.text_dim)[tracks],
        text_mask=np.arange(shape.tokens) < used[:, None],
        tempo_bpm=rng.uniform(60, 180, count).astype(np.float32),
        key=rng.integers(0, 24, count).astype(np.int8),
        caption=np.array([f"caption {seed}-{i}" for i in tracks], dtype=object),
        track=np.array([f"track {seed}"] * count, dtype=object),
        composition=np.array([f"composition {seed}"] * count, dtype=object),
        start_seconds=np.arange(count, dtype=np.float32),
    )


def _noise(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32).astype(np.float16)


class ParquetCopy:
    """Presto's own format: shards, then the manifest that makes the data set exist."""

    def __init__(self, uri: str, shape: RowShape) -> None:
        self.folder, self.shape = open_folder(uri), shape
        self.shards: list[dict[str, Any]] = []

    def add(self, rows: FullRows) -> None:
        self.add_bytes(to_parquet(rows), len(rows))

    def add_bytes(self, content: bytes, rows: int) -> None:
        file = f"shards/{len(self.shards):05d}.parquet"
        entry = write_shard(self.folder, file, content)
        self.shards.append({"file": file, "split": "train", "rows": rows, **entry})

    def close(self) -> None:
        channels, shape = self.shape.channels, self.shape
        statistics = {"mean": [0.0] * channels, "std": [1.0] * channels}
        info = {
            "shards": self.shards,
            "latents": {"channels": channels, "frames": shape.frames, **statistics},
            "codec": {"kind": "mel_pca", "path": "", "digest": "none", "sample_rate_hz": 44100, "hop": 2048},
            "text": {"kind": "minilm", "path": "", "name": "x", "digest": "none"}
            | {"dim": shape.text_dim, "max_tokens": shape.tokens},
        }
        details = {"dataset": info}
        commit_artifact(
            self.folder, kind="dataset", artifact_id="0" * 16, config_yaml="", parents={}, files={}, details=details
        )


class TarCopy:
    """webdataset: one tar a shard, one member of its binary tensor format a row."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.written = folder, 0

    def add(self, rows: FullRows) -> None:
        import webdataset
        from webdataset import tenbin

        stream = io.BytesIO()
        with webdataset.TarWriter(stream) as tar:
            for i, row in enumerate(each(rows)):
                arrays = [np.atleast_1d(value) for value in row.values()]
                tar.write({"__key__": f"{self.written:05d}-{i:03d}", "ten": bytes(tenbin.encode_buffer(arrays))})
        write_bytes(self.folder, f"{self.written:05d}.tar", stream.getvalue())
        self.written += 1

    def close(self) -> None:
        pass


class MosaicCopy:
    """mosaicml-streaming: MDS shards of about the same size, uploaded by its own writer."""

    def __init__(self, uri: str, shape: RowShape, scratch: Path) -> None:
        from streaming import MDSWriter

        columns = {
            "latents": f"ndarray:float16:{shape.channels},{shape.frames}",
            "text_pooled": f"ndarray:float16:{shape.text_dim}",
            "text_tokens": f"ndarray:float16:{shape.tokens},{shape.text_dim}",
            "text_mask": f"ndarray:uint8:{shape.tokens}",
            "tempo_bpm": "float32",
            "key": "int8",
        }
        limit = ROWS_PER_SHARD * (shape.row_bytes + 256)
        self.writer = MDSWriter(out=(str(scratch), uri), columns=columns, size_limit=limit, keep_local=False)

    def add(self, rows: FullRows) -> None:
        for row in each(rows):
            self.writer.write(row)

    def close(self) -> None:
        self.writer.finish()


def each(rows: FullRows) -> Iterator[dict[str, Any]]:
    """The columns that training reads, row by row."""
    for i in range(len(rows)):
        row = {name: getattr(rows, name)[i] for name in ("latents", "text_pooled", "text_tokens")}
        yield row | {
            "text_mask": rows.text_mask[i].astype(np.uint8),
            "tempo_bpm": rows.tempo_bpm[i],
            "key": rows.key[i],
        }


def write(copies: list[Any], shape: RowShape, *, shards: int, rows_per_shard: int = ROWS_PER_SHARD) -> None:
    """The same shards into every copy, one at a time."""
    for seed in range(shards):
        rows = rows_of(shape, seed, rows_per_shard)
        for copy in copies:
            copy.add(rows)
    for copy in copies:
        copy.close()
