"""The loaders that are compared: each reads every row of a data set once an epoch, in batches of float32 tensors.

Only Presto's shuffles, checks hashes and normalises; the others are spared that work. Settings of which none is best
everywhere (threads, workers) are tried, and the best one is compared.
"""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.parquet_tensors import read_array
from pipelines.storage.filesystem import open_folder

BATCH = 32
CACHE_BYTES = 2**40
COLUMNS = ("latents", "text_pooled", "text_tokens", "text_mask", "tempo_bpm", "key")
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bool, torch.float32, torch.int64)
Tensors = tuple[Tensor, ...]
Reading = Callable[[str, Path, int], Iterator[int]]
"""(Folder of the data set's copies, empty local folder, epochs) -> rows of each batch."""


@dataclass(frozen=True)
class PrestoSettings:
    """Settings of the stream: `cluster.reader`, and whether `cluster.shard_cache_gb` lets it keep shards on disk."""

    reader: str
    keeps: bool


def make_presto_reading(how: PrestoSettings) -> Reading:
    """The training stream: shuffled, hashes checked, normalised; what it keeps of shards is nothing at first."""

    def read_stream(uri: str, scratch: Path, epochs: int) -> Iterator[int]:
        from pipelines.data import shard_reader
        from pipelines.data.dataset import open_dataset, stream_batches
        from pipelines.data.shard_cache import ShardCache
        from presto_core.training.state import Cursor

        dataset = open_dataset(f"{uri}/presto")
        rows = sum(s.rows for s in dataset.shards("train"))
        chosen = {"ray": shard_reader.read_with_ray, "threads": shard_reader.read_with_threads}[how.reader]
        cache = ShardCache(CACHE_BYTES, str(scratch / "shards")) if how.keeps else None
        batches = stream_batches(dataset, seed=0, cursor=Cursor(), global_batch_size=BATCH, reader=chosen, cache=cache)
        for _ in range(epochs * (rows // BATCH)):
            yield len(next(batches).x0)
        batches.close()

    return read_stream


def pyarrow_files(threads: int) -> Reading:
    """What one writes without a library: shards read whole by threads, then cut."""

    def read(uri: str, scratch: Path, epochs: int) -> Iterator[int]:
        import pyarrow.parquet as pq

        folder, files = _files(f"{uri}/presto/shards")

        def tensors(file: str) -> Tensors:
            table = pq.read_table(file, columns=list(COLUMNS), filesystem=folder.filesystem)
            return _tensors([read_array(table, name) for name in COLUMNS])

        with ThreadPoolExecutor(threads) as pool:
            for shard in pool.map(tensors, files * epochs):
                for batch in zip(*(column.split(BATCH) for column in shard)):
                    yield len(batch[0])

    return read


def pyarrow_dataset(uri: str, scratch: Path, epochs: int) -> Iterator[int]:
    """Arrow's own scanner with its own threads and read-ahead."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    folder, files = _files(f"{uri}/presto/shards")
    scanned = ds.dataset(files * epochs, filesystem=folder.filesystem, format="parquet")
    for batch in scanned.to_batches(columns=list(COLUMNS), batch_size=BATCH):
        table = pa.Table.from_batches([batch])
        yield len(_tensors([read_array(table, name) for name in COLUMNS])[0])


def webdataset(workers: int) -> Reading:
    """Tar shards streamed through the library's pipeline and its loader."""

    def read(uri: str, scratch: Path, epochs: int) -> Iterator[int]:
        import webdataset as wds
        from webdataset.gopen import gopen_schemes

        gopen_schemes["s3"] = _open_s3
        with ThreadPoolExecutor(1) as pool:  # listing starts S3 threads, which a fork must not inherit
            urls = [f"s3://{file}" for file in pool.submit(_list_keys, f"{uri}/tar").result()]
        dataset = wds.WebDataset(urls * epochs, shardshuffle=False, empty_check=False)
        batches = dataset.map(_from_tar).batched(BATCH, collation_fn=_stack)
        for batch in wds.WebLoader(batches, batch_size=None, num_workers=workers):
            yield len(batch[0])

    return read


def mosaic(workers: int) -> Reading:
    """MDS shards through an empty local cache and the library's own loader."""

    def read(uri: str, scratch: Path, epochs: int) -> Iterator[int]:
        from streaming import StreamingDataLoader, StreamingDataset

        cache = scratch / "cache"
        dataset = StreamingDataset(
            remote=f"{uri}/mds", local=str(cache), shuffle=False, batch_size=BATCH, predownload=8 * BATCH
        )
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_from_mosaic)
        for _ in range(epochs):  # what the cache holds is not fetched again
            for batch in loader:
                yield len(batch[0])
        shutil.rmtree(cache)

    return read


PRESTO = {
    f"presto, {reader}, {'keeps shards' if keeps else 'keeps nothing'}": PrestoSettings(reader, keeps)
    for reader in ("threads", "ray")
    for keeps in (True, False)
}
READINGS: dict[str, Reading] = {
    **{name: make_presto_reading(how) for name, how in PRESTO.items()},
    **{f"pyarrow.parquet, {n} threads": pyarrow_files(n) for n in (2, 4)},
    "pyarrow.dataset": pyarrow_dataset,
    **{f"webdataset, {n} workers": webdataset(n) for n in (0, 1, 2)},
    **{f"mosaicml-streaming, {n} workers": mosaic(n) for n in (0, 1, 2)},
}


def _files(uri: str) -> tuple[Any, list[str]]:
    from pyarrow.fs import FileSelector

    folder = open_folder(uri)
    return folder, sorted(info.path for info in folder.filesystem.get_file_info(FileSelector(folder.path)))


def _list_keys(uri: str) -> list[str]:
    from pipelines.storage.s3_clients import create_s3_client

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = create_s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return sorted(f"{bucket}/{entry['Key']}" for page in pages for entry in page["Contents"])


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **options: Any) -> Any:
    """webdataset has no s3 scheme of its own; a shard is read in one request."""
    folder, _, name = url.rpartition("/")
    folder_handle = open_folder(folder)
    with folder_handle.filesystem.open_input_file(folder_handle.file_path(name)) as stream:
        return io.BytesIO(stream.read())


def _tensors(arrays: list[np.ndarray[Any, Any]]) -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Arrow's memory is read-only; what is made of it here is a copy
        return tuple(torch.from_numpy(array).to(dtype, copy=True) for array, dtype in zip(arrays, DTYPES))


def _from_tar(sample: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    from webdataset import tenbin

    return tenbin.decode_buffer(sample["ten"])


def _stack(samples: list[list[np.ndarray[Any, Any]]]) -> Tensors:
    return _tensors([np.stack(values) for values in zip(*samples)])


def _from_mosaic(samples: list[dict[str, Any]]) -> Tensors:
    return _tensors([np.stack([sample[name] for sample in samples]) for name in COLUMNS])
