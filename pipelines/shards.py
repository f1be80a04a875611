"""One Parquet shard of the latent data set: rows of fixed shape <-> bytes, readable without Ray."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from presto_core.registry.store import Folder, StoreError, reason

Array = npt.NDArray[Any]


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

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: Any) -> Rows:
        return Rows(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def cat(parts: Sequence[Rows]) -> Rows:
        return Rows(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)})


def to_parquet(rows: Rows) -> bytes:
    """Rows as one Parquet file; tensors are Arrow's own fixed-shape type."""
    columns = {f.name: _column(getattr(rows, f.name)) for f in fields(rows)}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, compression="zstd", write_page_checksum=True)
    return stream.getvalue()


def from_parquet(content: bytes) -> Rows:
    """Rows of one Parquet file written by `to_parquet`.

    Raises:
        KeyError, pa.ArrowInvalid: the bytes are not such a file.
    """
    table = pq.read_table(pa.BufferReader(content))
    return Rows(**{f.name: _array(table.column(f.name)) for f in fields(Rows)})


def read_shard(folder: Folder, *, file: str, sha256: str) -> Rows:
    """A shard's rows, checked against the manifest's hash.

    Raises:
        StoreError: missing, changed, or not a shard; the message names the file.
    """
    try:
        with folder.filesystem.open_input_file(folder.file(file)) as stream:
            content = stream.read()
    except OSError as error:
        raise StoreError(f"cannot read shard {folder.uri}/{file}: {reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"shard {folder.uri}/{file} is damaged: its sha256 is not the manifest's; ingest again")
    try:
        return from_parquet(content)
    except (KeyError, pa.ArrowInvalid) as error:
        raise StoreError(f"shard {folder.uri}/{file} is not of this release's schema: {error}") from error


def _column(values: Array) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values.tolist() if values.dtype.kind in "OU" else values)
    if values.dtype == bool:
        values = values.astype(np.uint8)  # Arrow packs bools into bits, which a tensor cannot hold
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def _array(column: pa.ChunkedArray) -> Array:
    if isinstance(column.type, pa.FixedShapeTensorType):
        values = np.asarray(column.combine_chunks().to_numpy_ndarray())
        return values.astype(bool) if values.dtype == np.uint8 else values
    return np.asarray(column.to_pandas())
