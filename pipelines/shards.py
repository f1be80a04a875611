"""One Parquet shard of the latent data set: rows of fixed shape <-> bytes, readable without Ray."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shard_cache import ShardCache
from presto_core.registry.store import Folder, StoreError, read_hashed

Array = npt.NDArray[Any]

DICTIONARY_BYTES = 2**30  # no limit: past it, Parquet would give up a dictionary half-way


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, as the manifest lists it."""

    file: str
    split: str
    rows: int
    sha256: str
    bytes: int = 0


@dataclass(frozen=True)
class Examples:
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
    def of(cls, table: pa.Table) -> Self:
        """Columns of a table that `to_parquet` wrote; numbers are not copied. Raises KeyError where one is missing."""
        return cls(**{name: column_of(table, name) for name in cls.columns()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Rows one after another, copied."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in cls.columns()})


@dataclass(frozen=True)
class Rows(Examples):
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
class Column:
    """A column as it is stored: values that repeat are kept once.

    Attributes:
        values: [U, ...].
        index: [R], which of the values is a row's; None where each row has its own.
    """

    values: Array
    index: Array | None

    def __getitem__(self, row: int) -> Any:
        return self.values[row if self.index is None else self.index[row]]

    def copy(self) -> Column:
        return Column(self.values.copy(), None if self.index is None else self.index.copy())

    def array(self) -> Array:
        """[R, ...]; what does not repeat is not copied."""
        return self.values if self.index is None else self.values[self.index]


@dataclass(frozen=True)
class Held:
    """A shard's rows while training draws from them: no more than it reads, and what repeats is kept once."""

    latents: Column
    text_pooled: Column
    text_tokens: Column
    text_mask: Column
    tempo_bpm: Column
    key: Column

    @classmethod
    def columns(cls) -> list[str]:
        return Examples.columns()

    @classmethod
    def of(cls, table: pa.Table) -> Held:
        """Columns of a table that `to_parquet` wrote. Raises KeyError where one is missing."""
        return cls(**{name: stored_column(table, name) for name in cls.columns()})

    def copy(self) -> Held:
        return Held(**{name: getattr(self, name).copy() for name in self.columns()})


def to_parquet(rows: Rows) -> bytes:
    """Rows as one Parquet file."""
    return table_bytes({name: getattr(rows, name) for name in rows.columns()}, repeated=REPEATED)


def table_bytes(columns: dict[str, Array], *, repeated: Sequence[str] = ()) -> bytes:
    """Arrays with as many rows each, as one Parquet file.

    A tensor's row is a string of bytes, and its field says the dtype and shape of a row. Arrow has a type for
    tensors, a list of numbers in Parquet, which takes eight times as long to read.

    Args:
        repeated: tensors of which rows on end share values; a reader gets each value once.
    """
    arrays, described = [], []
    for name, values in columns.items():
        if values.ndim == 1:
            array, metadata = pa.array(values.tolist() if values.dtype.kind in "OU" else values), None
        else:
            array = _in_runs(values) if name in repeated else _each(values)
            metadata = {"dtype": values.dtype.name, "shape": json.dumps(values.shape[1:])}
        arrays.append(array)
        described.append(pa.field(name, array.type, metadata=metadata))
    stream = io.BytesIO()
    table = pa.Table.from_arrays(arrays, schema=pa.schema(described))
    pq.write_table(
        table,
        stream,
        compression="lz4",
        use_dictionary=[name for name in columns if name in repeated or columns[name].ndim == 1],
        dictionary_pagesize_limit=DICTIONARY_BYTES,
        write_page_checksum=True,
    )
    return stream.getvalue()


def _each(values: Array) -> pa.Array:
    """A row's bytes, for every row."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, buffer])


def _in_runs(values: Array) -> pa.Array:
    """A row's bytes, once for all rows that share them; Parquet has dictionaries for binary of any length only.

    A value must not be in a dictionary twice: Arrow would leave room for it in the file, filled with whatever memory
    held.
    """
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    starts = np.r_[True, (flat[1:] != flat[:-1]).any(axis=1)]
    once = pa.array([row.tobytes() for row in flat[starts]], type=pa.binary()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(once.indices.take(pa.array(np.cumsum(starts) - 1)), once.dictionary)


def column_of(table: pa.Table, name: str) -> Array:
    """A column that `table_bytes` wrote, row by row; see `stored_column`."""
    return stored_column(table, name).array()


def stored_column(table: pa.Table, name: str) -> Column:
    """A column that `table_bytes` wrote; numbers are not copied where they lie in one piece.

    Raises:
        KeyError: there is none.
    """
    column, metadata = table.column(name), table.schema.field(name).metadata
    if pa.types.is_string(column.type):
        return Column(np.array(column.to_pylist(), dtype=object), None)
    if not metadata:
        return Column(np.asarray(column.to_numpy()), None)
    parts = [_tensors(chunk, metadata[b"dtype"].decode(), json.loads(metadata[b"shape"])) for chunk in column.chunks]
    if len(parts) == 1:
        return parts[0]
    if parts[0].index is None:
        return Column(np.concatenate([part.values for part in parts]), None)
    firsts = np.cumsum([0, *(len(part.values) for part in parts)])
    index = np.concatenate([first + part.index for first, part in zip(firsts, parts)])
    return Column(np.concatenate([part.values for part in parts]), index)


def _tensors(chunk: pa.Array, dtype: str, shape: list[int]) -> Column:
    if isinstance(chunk, pa.DictionaryArray):
        once = chunk.dictionary
        ends = np.frombuffer(once.buffers()[1], np.int32)[once.offset : once.offset + len(once) + 1]
        buffer = once.buffers()[2][ends[0] : ends[-1]]
        return Column(np.frombuffer(buffer, dtype=dtype).reshape(len(once), *shape), np.asarray(chunk.indices))
    row_bytes = chunk.type.byte_width
    buffer = chunk.buffers()[1][chunk.offset * row_bytes : (chunk.offset + len(chunk)) * row_bytes]
    return Column(np.frombuffer(buffer, dtype=dtype).reshape(len(chunk), *shape), None)


def read_table(folder: Folder, shard: Shard, *, columns: Sequence[str], cache: ShardCache | None = None) -> pa.Table:
    """Columns of a shard as an Arrow table, checked against the manifest's hash and this release's schema.

    Args:
        cache: where a shard from object storage is looked for first, and kept.

    Raises:
        StoreError: missing, changed, or not a shard; the message names the file.
    """
    place = f"{folder.uri}/{shard.file}"
    content = _content(folder, shard, cache if folder.remote else None)
    try:
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        missing = [name for name in Rows.columns() if name not in file.schema_arrow.names]
        if missing:
            raise pa.ArrowInvalid(f"it lacks {', '.join(missing)}")
        table = file.read(columns=list(columns), use_threads=False)  # several shards are read at a time
    except pa.ArrowInvalid as error:
        raise StoreError(f"shard {place} is not of this release's schema: {error}; ingest again") from None
    if table.num_rows != shard.rows:
        raise StoreError(f"shard {place} holds {table.num_rows} rows, the manifest says {shard.rows}; ingest again")
    return table


def _content(folder: Folder, shard: Shard, cache: ShardCache | None) -> bytes | memoryview:
    if cache is None:
        return read_hashed(folder, shard.file, shard.sha256)
    if (kept := cache.read(shard.sha256)) is not None:
        return kept
    content = read_hashed(folder, shard.file, shard.sha256)
    cache.keep(shard.sha256, content)
    return content
