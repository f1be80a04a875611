"""Shards from storage in a given order, ahead of their use, by threads or Ray Data tasks; checked by their hashes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipelines.cluster.actor_pool import dataset_from_items
from pipelines.cluster.session import READER_CPUS
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shards import (
    FullRows,
    Shard,
    ShardRows,
    read_table,
)
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError

R = TypeVar("R", ShardRows, FullRows)
"""What is made of a shard."""


class Reader(Protocol):
    """Shards in the given order, with the columns of a kind, read ahead of their use."""

    def __call__(
        self, uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None
    ) -> Iterator[R]: ...


READER_THREADS = 2  # threads or tasks that read for a training worker
PREFETCH_SHARDS = 4  # shards that threads have ready or in hand
TASK_BYTES = 16 * 2**20  # of shards that one task of Ray Data reads: a task costs as much as some megabytes
SHARDS_PER_EXECUTION = 1024  # that one execution of Ray Data reads: its start-up grows with their number
PREFETCH_BLOCKS = 2
_ERROR = "error"


def read_with_threads(
    uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None
) -> Iterator[R]:
    """Shards in the given order, read ahead by threads of this process.

    Raises:
        StoreError: one is missing or damaged.
    """
    folder = open_folder(uri)

    def read(shard: Shard) -> R:
        return kind.from_table(read_table(folder, shard, columns=kind.columns(), cache=cache))

    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(READER_THREADS) as pool:
        try:
            for shard in shards:
                pending.append(pool.submit(read, shard))
                if len(pending) > PREFETCH_SHARDS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_with_ray(uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None) -> Iterator[R]:
    """Shards in the given order, read ahead by Ray Data tasks on any node: in parallel, no further than memory allows.

    Raises:
        StoreError: one is missing or damaged.
    """
    remaining = iter(shards)
    while group := list(islice(remaining, SHARDS_PER_EXECUTION)):
        yield from _split_blocks(_read_blocks(uri, group, kind.columns(), cache), group, kind)


def _read_blocks(uri: str, shards: list[Shard], columns: list[str], cache: ShardCache | None) -> Iterator[pa.Table]:
    """Tables that together hold the shards' rows, in order."""
    cache_json = json.dumps(cache and vars(cache))
    items = [
        {"uri": uri, "columns": columns, "shards": json.dumps([vars(shard) for shard in group]), "cache": cache_json}
        for group in _group_by_task(shards)
    ]
    blocks = dataset_from_items(items).map_batches(
        _read_item,
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
        num_cpus=READER_CPUS / 2,
        concurrency=min(READER_THREADS, len(items)),
    )
    for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH_BLOCKS):
        if _ERROR in table.column_names:
            raise StoreError(table.column(_ERROR)[0].as_py())
        yield table


def _group_by_task(shards: list[Shard]) -> Iterator[list[Shard]]:
    """Consecutive shards that one task reads."""
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(s.bytes or TASK_BYTES for s in group) >= TASK_BYTES:
            yield group
            group = []
    if group:
        yield group


def _split_blocks(blocks: Iterator[pa.Table], shards: list[Shard], kind: type[R]) -> Iterator[R]:
    """The rows of each shard, out of blocks that may hold several of them or parts."""
    tables: list[pa.Table] = []
    for shard in shards:
        while sum(table.num_rows for table in tables) < shard.rows:
            tables.append(next(blocks))
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        yield kind.from_table(table.slice(0, shard.rows)).copy()  # what is used later must not hold Ray's memory
        tables = [table.slice(shard.rows)] if table.num_rows > shard.rows else []


def _read_item(item: pa.Table) -> pa.Table:
    """Some shards as one block of Arrow memory, which workers on its node share without copying.

    What is wrong with a shard is said in its place: raised here, Ray would run the task again and bury the sentence.
    """
    (fields,) = item.to_pylist()
    try:
        folder = open_folder(fields["uri"])
        shards = [Shard(**shard) for shard in json.loads(fields["shards"])]
        cache_fields = json.loads(fields["cache"])
        cache = cache_fields and ShardCache(**cache_fields)
        return pa.concat_tables([read_table(folder, s, columns=fields["columns"], cache=cache) for s in shards])
    except StoreError as error:
        return pa.table({_ERROR: [str(error)]})


def find_damaged_shards(uri: str, shards: list[Shard], *, with_ray: bool) -> dict[str, str]:
    """Of the shards that are missing or damaged: file -> what is wrong with it. Reads all of them."""
    items = [{"uri": uri, "shard": json.dumps(vars(shard))} for shard in shards]
    if with_ray:
        rows = dataset_from_items(items).map(_check_item, num_cpus=READER_CPUS / 2).iter_rows()
    else:
        rows = map(_check_item, items)
    return {row["file"]: row[_ERROR] for row in rows if row[_ERROR]}


def _check_item(item: dict[str, Any]) -> dict[str, Any]:
    shard = Shard(**json.loads(item["shard"]))
    try:
        read_table(open_folder(item["uri"]), shard, columns=FullRows.columns())
    except StoreError as error:
        return {"file": shard.file, _ERROR: str(error)}
    return {"file": shard.file, _ERROR: ""}
