"""One Parquet shard of the latent data set: rows of fixed shape <-> bytes, readable without Ray."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from presto_core.registry.store import Folder, StoreError, read_hashed

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, as the manifest lists it."""

    file: str
    split: str
    rows: int
    sha256: str
    bytes: int = 0


@dataclass(frozen=True)
class Rows:
    """Encoded windows of music, column by column.

    Attributes:
        latents: [R, C, T] float16, not normalised.
        text_pooled: [R, E] float16.
        text_tokens: [R, S, E] float16.
        text_mask: [R, S] bool.
        tempo_bpm: [R] float32, NaN where unknown.
        key: [R] int8, see conditioning.key_index.
        caption, track, composition: [R] strings.
        start_seconds: [R] float32, where in its track a window begins.
    """

    latents: Array
    text_pooled: Array
    text_tokens: Array
    text_mask: Array
    tempo_bpm: Array
    key: Array
    caption: Array
    track: Array
    composition: Array
    start_seconds: Array

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: Any) -> Rows:
        return Rows(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def copy(self) -> Rows:
        return Rows(**{f.name: getattr(self, f.name).copy() for f in fields(self)})

    @staticmethod
    def of(table: pa.Table) -> Rows:
        """Columns of a table that `to_parquet` wrote; numbers are not copied. Raises KeyError where one is missing."""
        return Rows(**{f.name: column_of(table, f.name) for f in fields(Rows)})

    @staticmethod
    def cat(parts: Sequence[Rows]) -> Rows:
        """Rows one after another, copied."""
        return Rows(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)})


def to_parquet(rows: Rows) -> bytes:
    """Rows as one Parquet file."""
    return table_bytes({f.name: getattr(rows, f.name) for f in fields(rows)})


def table_bytes(columns: dict[str, Array]) -> bytes:
    """Arrays with as many rows each, as one Parquet file.

    A tensor's row is a fixed number of bytes, and its field says the dtype and shape of a row. Arrow has a type for
    tensors, a list of numbers in Parquet, which takes eight times as long to read.
    """
    arrays, described = [], []
    for name, values in columns.items():
        if values.ndim == 1:
            array, metadata = pa.array(values.tolist() if values.dtype.kind in "OU" else values), None
        else:
            row_bytes = values[0].nbytes
            buffer = pa.py_buffer(np.ascontiguousarray(values))
            array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(values), [None, buffer])
            metadata = {"dtype": values.dtype.name, "shape": json.dumps(values.shape[1:])}
        arrays.append(array)
        described.append(pa.field(name, array.type, metadata=metadata))
    stream = io.BytesIO()
    table = pa.Table.from_arrays(arrays, schema=pa.schema(described))
    # rows of one track share a caption, which a dictionary keeps once; latents have nothing to share
    repeated = [name for name in columns if name != "latents"]
    pq.write_table(table, stream, compression="lz4", use_dictionary=repeated, write_page_checksum=True)
    return stream.getvalue()


def column_of(table: pa.Table, name: str) -> Array:
    """A column that `table_bytes` wrote; numbers are not copied where they lie in one piece.

    Raises:
        KeyError: there is none.
    """
    column, metadata = table.column(name), table.schema.field(name).metadata
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    if not metadata:
        return np.asarray(column.to_numpy())
    parts = [_tensor(chunk, metadata[b"dtype"].decode(), json.loads(metadata[b"shape"])) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tensor(chunk: pa.FixedSizeBinaryArray, dtype: str, shape: list[int]) -> Array:
    row_bytes = chunk.type.byte_width
    buffer = chunk.buffers()[1][chunk.offset * row_bytes : (chunk.offset + len(chunk)) * row_bytes]
    return np.frombuffer(buffer, dtype=dtype).reshape(len(chunk), *shape)


def read_table(folder: Folder, shard: Shard) -> pa.Table:
    """A shard's rows as an Arrow table, checked against the manifest's hash and this release's schema.

    Raises:
        StoreError: missing, changed, or not a shard; the message names the file.
    """
    place = f"{folder.uri}/{shard.file}"
    content = read_hashed(folder, shard.file, shard.sha256)
    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False)  # several shards are read at a time
    except pa.ArrowInvalid as error:
        raise StoreError(f"shard {place} is not of this release's schema: {error}; ingest again") from None
    missing = [f.name for f in fields(Rows) if f.name not in table.column_names]
    if missing:
        raise StoreError(f"shard {place} is not of this release's schema: it lacks {', '.join(missing)}; ingest again")
    if table.num_rows != shard.rows:
        raise StoreError(f"shard {place} holds {table.num_rows} rows, the manifest says {shard.rows}; ingest again")
    return table
