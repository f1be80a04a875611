"""Store arrays as columns of a Parquet file: each row of a tensor is a byte string, and repeated values are shared."""

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

MAX_DICTIONARY_BYTES = 2**30  # effectively no limit: beyond it, Parquet falls back to plain encoding


@dataclass(frozen=True)
class Column:
    """A column as stored, with repeated values kept once.

    Attributes:
        values: [U, ...], unique values.
        index: [R], index into `values` of each row; None if each row has its own value.
    """

    values: Array
    index: Array | None

    def __getitem__(self, row: int) -> Any:
        return self.values[row if self.index is None else self.index[row]]

    def copy(self) -> Column:
        return Column(self.values.copy(), None if self.index is None else self.index.copy())

    def to_array(self) -> Array:
        """Return the rows [R, ...]; without `index`, nothing is copied."""
        return self.values if self.index is None else self.values[self.index]


def serialize_table(columns: dict[str, Array], *, repeated: Sequence[str] = ()) -> bytes:
    """Serialize arrays of equal length as one Parquet file.

    A row of a tensor is a byte string; the field's metadata has its dtype and shape. Arrow's tensor type, a list of
    numbers in Parquet, takes eight times as long to read.

    Args:
        repeated: tensors whose consecutive rows share values; a reader gets each value once.
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
    """Encode each row as its bytes."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, buffer])


def _encode_rows_as_dictionary(values: Array) -> pa.Array:
    """Encode each row's bytes once for all rows that share them; Parquet needs variable-length binary for that.

    No value is in the dictionary twice: for a second one, Arrow would reserve space in the file and fill it with
    uninitialized memory.
    """
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    starts = np.r_[True, (flat[1:] != flat[:-1]).any(axis=1)]
    dictionary = pa.array([row.tobytes() for row in flat[starts]], type=pa.binary()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        dictionary.indices.take(pa.array(np.cumsum(starts) - 1)), dictionary.dictionary
    )


def read_array(table: pa.Table, name: str) -> Array:
    """Read a column written by `serialize_table` as an array of rows; see `read_column`."""
    return read_column(table, name).to_array()


def read_column(table: pa.Table, name: str) -> Column:
    """Read a column written by `serialize_table`; numbers in a single chunk are not copied.

    Raises:
        KeyError: the table has no such column.
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
