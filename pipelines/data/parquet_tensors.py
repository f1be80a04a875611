"""Arrays as columns of one Parquet file: a tensor's row is a string of bytes, values that repeat are kept once."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Array = npt.NDArray[Any]

MAX_DICTIONARY_BYTES = 2**30  # no limit: past it, Parquet would give up a dictionary half-way


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

    def to_array(self) -> Array:
        """[R, ...]; what does not repeat is not copied."""
        return self.values if self.index is None else self.values[self.index]


def serialize_table(columns: dict[str, Array], *, repeated: Sequence[str] = ()) -> bytes:
    """Arrays with as many rows each, as one Parquet file.

    A tensor's row is a string of bytes, and its field says the dtype and shape of a row. Arrow has a type for
    tensors, a list of numbers in Parquet, which takes eight times as long to read.

    Args:
        repeated: tensors of which rows on end share values; a reader gets each value once.
    """
    arrays, fields = [], []
    for name, values in columns.items():
        if values.ndim == 1:
            array, metadata = pa.array(values.tolist() if values.dtype.kind in "OU" else values), None
        else:
            array = _encode_rows_as_dictionary(values) if name in repeated else _encode_rows(values)
            metadata = {"dtype": values.dtype.name, "shape": json.dumps(values.shape[1:])}
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata))
    stream = io.BytesIO()
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    pq.write_table(
        table,
        stream,
        compression="lz4",
        use_dictionary=[name for name in columns if name in repeated or columns[name].ndim == 1],
        dictionary_pagesize_limit=MAX_DICTIONARY_BYTES,
        write_page_checksum=True,
    )
    return stream.getvalue()


def _encode_rows(values: Array) -> pa.Array:
    """A row's bytes, for every row."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, buffer])


def _encode_rows_as_dictionary(values: Array) -> pa.Array:
    """A row's bytes, once for all rows that share them; Parquet has dictionaries for binary of any length only.

    A value must not be in a dictionary twice: Arrow would leave room for it in the file, filled with whatever memory
    held.
    """
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    starts = np.r_[True, (flat[1:] != flat[:-1]).any(axis=1)]
    dictionary = pa.array([row.tobytes() for row in flat[starts]], type=pa.binary()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        dictionary.indices.take(pa.array(np.cumsum(starts) - 1)), dictionary.dictionary
    )


def read_array(table: pa.Table, name: str) -> Array:
    """A column that `table_bytes` wrote, row by row; see `stored_column`."""
    return read_column(table, name).to_array()


def read_column(table: pa.Table, name: str) -> Column:
    """A column that `table_bytes` wrote; numbers are not copied where they lie in one piece.

    Raises:
        KeyError: there is none.
    """
    column, metadata = table.column(name), table.schema.field(name).metadata
    if pa.types.is_string(column.type):
        return Column(np.array(column.to_pylist(), dtype=object), None)
    if not metadata:
        return Column(np.asarray(column.to_numpy()), None)
    parts = [
        _decode_chunk(chunk, metadata[b"dtype"].decode(), json.loads(metadata[b"shape"])) for chunk in column.chunks
    ]
    if len(parts) == 1:
        return parts[0]
    if parts[0].index is None:
        return Column(np.concatenate([part.values for part in parts]), None)
    firsts = np.cumsum([0, *(len(part.values) for part in parts)])
    index = np.concatenate([first + part.index for first, part in zip(firsts, parts)])
    return Column(np.concatenate([part.values for part in parts]), index)


def _decode_chunk(chunk: pa.Array, dtype: str, shape: list[int]) -> Column:
    if isinstance(chunk, pa.DictionaryArray):
        dictionary = chunk.dictionary
        ends = np.frombuffer(dictionary.buffers()[1], np.int32)[
            dictionary.offset : dictionary.offset + len(dictionary) + 1
        ]
        buffer = dictionary.buffers()[2][ends[0] : ends[-1]]
        return Column(np.frombuffer(buffer, dtype=dtype).reshape(len(dictionary), *shape), np.asarray(chunk.indices))
    row_bytes = chunk.type.byte_width
    buffer = chunk.buffers()[1][chunk.offset * row_bytes : (chunk.offset + len(chunk)) * row_bytes]
    return Column(np.frombuffer(buffer, dtype=dtype).reshape(len(chunk), *shape), None)
