"""Read and write one Parquet shard of the latent data set, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from pipelines.data.parquet_tensors import Array, Column, read_array, read_column, serialize_table
from pipelines.data.shard_cache import ShardCache
from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.formats import UnsafeArtifactError, check_decoded_parquet
from presto_core.artifacts.store import StoreError, read_verified, write_with_entry


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, as the manifest lists it; the first data sets have no `blake3`."""

    file: str
    split: str
    rows: int
    sha256: str
    bytes: int = 0
    blake3: str = ""

    @property
    def checksum(self) -> Checksum:
        """Return the checksum that its bytes are verified against on every read."""
        return Checksum("blake3", self.blake3) if self.blake3 else Checksum("sha256", self.sha256)


OPTIONAL = ("timing",)  # columns that a shard may lack


def add_optional(columns: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return the columns, and those optional ones that are present."""
    return [*columns, *(name for name in OPTIONAL if name in present)]


@dataclass(frozen=True)
class TrainColumns:
    """The columns of encoded windows of music that training reads.

    Attributes:
        latents: [R, C, T] float16, not normalized.
        text_pooled: [R, E] float16.
        text_tokens: [R, S, E] float16.
        text_mask: [R, S] bool.
        tempo_bpm: [R] float32, NaN if unknown.
        key: [R] int8, see conditioning.key_index.
        timing: [R, 2] float32, seconds where the window starts and of the whole recording; None in data sets for
            models that do not know it.
    """

    latents: Array
    text_pooled: Array
    text_tokens: Array
    text_mask: Array
    tempo_bpm: Array
    key: Array
    timing: Array | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: Any) -> Self:
        return type(self)(**{name: value[index] for name, value in self.present_columns().items()})

    def copy(self) -> Self:
        return type(self)(**{name: value.copy() for name, value in self.present_columns().items()})

    def present_columns(self) -> dict[str, Array]:
        """Return the columns without optional ones that are not there."""
        names = (*self.columns(), *OPTIONAL)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @classmethod
    def columns(cls) -> list[str]:
        """The columns that every shard has; `OPTIONAL` lists the others."""
        return [f.name for f in fields(cls) if f.name not in OPTIONAL]

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read the columns of a table from `to_parquet`; numbers are not copied. KeyError if a column is missing."""
        return cls(**{name: read_array(table, name) for name in add_optional(cls.columns(), table.column_names)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Concatenate rows, with a copy."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in parts[0].present_columns()})


@dataclass(frozen=True)
class FullRows(TrainColumns):
    """All columns of a shard: encoded windows of music with their metadata.

    Attributes:
        caption, track, composition: [R] strings.
        start_seconds: [R] float32, start of the window in its track.
    """

    caption: Array
    track: Array
    composition: Array
    start_seconds: Array


REPEATED = ("text_pooled", "text_tokens", "text_mask")  # rows of one track share a caption


@dataclass(frozen=True)
class ShardRows:
    """A shard's rows during training: only the columns that it reads, with repeated values kept once."""

    latents: Column
    text_pooled: Column
    text_tokens: Column
    text_mask: Column
    tempo_bpm: Column
    key: Column
    timing: Column | None = None

    @classmethod
    def columns(cls) -> list[str]:
        return TrainColumns.columns()

    @classmethod
    def from_table(cls, table: pa.Table) -> ShardRows:
        """Read the columns of a table from `to_parquet`. KeyError if a column is missing."""
        return cls(**{name: read_column(table, name) for name in add_optional(cls.columns(), table.column_names)})

    def copy(self) -> ShardRows:
        columns = {name: getattr(self, name) for name in (*self.columns(), *OPTIONAL)}
        return ShardRows(**{name: value.copy() for name, value in columns.items() if value is not None})


def to_parquet(rows: FullRows) -> bytes:
    """Serialize rows as one Parquet file."""
    return serialize_table(rows.present_columns(), repeated=REPEATED)


def write_shard(folder: Folder, file: str, content: bytes) -> dict[str, Any]:
    """Write the output of `to_parquet`; return its hashes and size for the manifest. StoreError if it fails."""
    return write_with_entry(folder, file, content) | {"blake3": blake3(content).hexdigest()}


def read_table(folder: Folder, shard: Shard, *, columns: Sequence[str], cache: ShardCache | None = None) -> pa.Table:
    """Read columns of a shard as an Arrow table, verified against the manifest's hash and this release's schema.

    Args:
        cache: node cache for shards from object storage.

    Raises:
        StoreError: the file is missing, changed, or not a shard; the message names it.
    """
    uri = f"{folder.uri}/{shard.file}"
    content = _read_content(folder, shard, cache if folder.is_remote else None)
    try:
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        check_decoded_parquet(file.metadata, len(content))
        missing = [name for name in FullRows.columns() if name not in file.schema_arrow.names]
        if missing:
            raise pa.ArrowInvalid(f"it lacks {', '.join(missing)}")
        wanted = add_optional(columns, file.schema_arrow.names)
        table = file.read(columns=wanted, use_threads=False)  # several shards are read in parallel
    except UnsafeArtifactError as error:
        raise UnsafeArtifactError(f"shard {uri} is refused: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"shard {uri} does not have this release's schema: {error}; ingest again") from None
    if table.num_rows != shard.rows:
        raise StoreError(f"shard {uri} has {table.num_rows} rows, its manifest lists {shard.rows}; ingest again")
    return table


def _read_content(folder: Folder, shard: Shard, cache: ShardCache | None) -> bytes:
    if cache is None:
        return read_verified(folder, shard.file, shard.checksum)
    if (cached := cache.read(shard.checksum)) is not None:
        return cached
    content = read_verified(folder, shard.file, shard.checksum)
    cache.keep(shard.checksum, content)
    return content
