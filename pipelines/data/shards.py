"""One Parquet shard of the latent data set: rows of fixed shape <-> bytes, readable without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from pipelines.data.parquet_tensors import (
    Array,
    Column,
    read_array,
    read_column,
    serialize_table,
)
from pipelines.data.shard_cache import ShardCache
from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import (
    StoreError,
    read_verified,
    write_with_entry,
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, as the manifest lists it; the first data sets knew no blake3."""

    file: str
    split: str
    rows: int
    sha256: str
    bytes: int = 0
    blake3: str = ""

    @property
    def checksum(self) -> Checksum:
        """What its bytes are checked against at every reading."""
        return Checksum("blake3", self.blake3) if self.blake3 else Checksum("sha256", self.sha256)


@dataclass(frozen=True)
class TrainColumns:
    """What training reads of encoded windows of music, column by column.

    Attributes:
        latents: [R, C, T] float16, not normalised.
        text_pooled: [R, E] float16.
        text_tokens: [R, S, E] float16.
        text_mask: [R, S] bool.
        tempo_bpm: [R] float32, NaN where unknown.
        key: [R] int8, see conditioning.key_index.
    """

    latents: Array
    text_pooled: Array
    text_tokens: Array
    text_mask: Array
    tempo_bpm: Array
    key: Array

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: Any) -> Self:
        return type(self)(**{name: getattr(self, name)[index] for name in self.columns()})

    def copy(self) -> Self:
        return type(self)(**{name: getattr(self, name).copy() for name in self.columns()})

    @classmethod
    def columns(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Columns of a table that `to_parquet` wrote; numbers are not copied. Raises KeyError where one is missing."""
        return cls(**{name: read_array(table, name) for name in cls.columns()})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Rows one after another, copied."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in cls.columns()})


@dataclass(frozen=True)
class FullRows(TrainColumns):
    """Encoded windows of music with all that is known of them: a shard.

    Attributes:
        caption, track, composition: [R] strings.
        start_seconds: [R] float32, where in its track a window begins.
    """

    caption: Array
    track: Array
    composition: Array
    start_seconds: Array


REPEATED = ("text_pooled", "text_tokens", "text_mask")  # rows of one track share a caption


@dataclass(frozen=True)
class ShardRows:
    """A shard's rows while training draws from them: no more than it reads, and what repeats is kept once."""

    latents: Column
    text_pooled: Column
    text_tokens: Column
    text_mask: Column
    tempo_bpm: Column
    key: Column

    @classmethod
    def columns(cls) -> list[str]:
        return TrainColumns.columns()

    @classmethod
    def from_table(cls, table: pa.Table) -> ShardRows:
        """Columns of a table that `to_parquet` wrote. Raises KeyError where one is missing."""
        return cls(**{name: read_column(table, name) for name in cls.columns()})

    def copy(self) -> ShardRows:
        return ShardRows(**{name: getattr(self, name).copy() for name in self.columns()})


def to_parquet(rows: FullRows) -> bytes:
    """Rows as one Parquet file."""
    return serialize_table({name: getattr(rows, name) for name in rows.columns()}, repeated=REPEATED)


def write_shard(folder: Folder, file: str, content: bytes) -> dict[str, Any]:
    """Write what `to_parquet` gave; its hashes and size for the manifest. Raises StoreError where it cannot."""
    return write_with_entry(folder, file, content) | {"blake3": blake3(content).hexdigest()}


def read_table(folder: Folder, shard: Shard, *, columns: Sequence[str], cache: ShardCache | None = None) -> pa.Table:
    """Columns of a shard as an Arrow table, checked against the manifest's hash and this release's schema.

    Args:
        cache: where a shard from object storage is looked for first, and kept.

    Raises:
        StoreError: missing, changed, or not a shard; the message names the file.
    """
    uri = f"{folder.uri}/{shard.file}"
    content = _read_content(folder, shard, cache if folder.is_remote else None)
    try:
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        missing = [name for name in FullRows.columns() if name not in file.schema_arrow.names]
        if missing:
            raise pa.ArrowInvalid(f"it lacks {', '.join(missing)}")
        table = file.read(columns=list(columns), use_threads=False)  # several shards are read at a time
    except pa.ArrowInvalid as error:
        raise StoreError(f"shard {uri} is not of this release's schema: {error}; ingest again") from None
    if table.num_rows != shard.rows:
        raise StoreError(f"shard {uri} holds {table.num_rows} rows, the manifest says {shard.rows}; ingest again")
    return table


def _read_content(folder: Folder, shard: Shard, cache: ShardCache | None) -> bytes:
    if cache is None:
        return read_verified(folder, shard.file, shard.checksum)
    if (cached := cache.read(shard.checksum)) is not None:
        return cached
    content = read_verified(folder, shard.file, shard.checksum)
    cache.keep(shard.checksum, content)
    return content
