"""Read shards in a given order and ahead of use, with threads or Ray Data tasks; every shard's hash is verified."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipelines.cluster.actor_pool import dataset_from_items
from pipelines.cluster.session import READER_CPUS
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shards import FullRows, Shard, ShardRows, read_table
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError
from presto_core.training.outage import OutageTimer, retry_while_away

R = TypeVar("R", ShardRows, FullRows)
"""Type of a shard's rows."""


class Reader(Protocol):
    """A function that yields shards in the given order, as rows of type `kind`, read ahead of use."""

    def __call__(
        self, uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None
    ) -> Iterator[R]: ...


READER_THREADS = 2  # threads or tasks per training worker
PREFETCH_SHARDS = 4  # shards that threads have ready or are reading
TASK_BYTES = 16 * 2**20  # read by one Ray Data task, whose overhead equals some megabytes
SHARDS_PER_EXECUTION = 1024  # per Ray Data execution, whose start-up time grows with their number
PREFETCH_BLOCKS = 2
_ERROR = "error"


def read_with_threads(
    uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None, max_outage_s: float = 0
) -> Iterator[R]:
    """Yield shards in the given order, read ahead by threads of this process.

    Args:
        max_outage_s: how long the store may be away.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    folder, ended = open_folder(uri), threading.Event()

    def read(shard: Shard) -> R:
        outage_timer = OutageTimer(max_outage_s, logging.getLogger(__name__).warning, folder.is_remote, ended)
        read_once = partial(read_table, folder, shard, columns=kind.columns(), cache=cache)
        return kind.from_table(retry_while_away(read_once, outage_timer, f"shard {shard.file}"))

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
            ended.set()
            pool.shutdown(cancel_futures=True)


def read_with_ray(
    uri: str, shards: Iterable[Shard], kind: type[R], *, cache: ShardCache | None = None, max_outage_s: float = 0
) -> Iterator[R]:
    """Yield shards in the given order, read ahead by Ray Data tasks on any node, as far as memory allows.

    Args:
        max_outage_s: how long the store may be away.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    remaining = iter(shards)
    while group := list(islice(remaining, SHARDS_PER_EXECUTION)):
        yield from _split_blocks(_read_blocks(uri, group, kind.columns(), cache, max_outage_s), group, kind)


def _read_blocks(
    uri: str, shards: list[Shard], columns: list[str], cache: ShardCache | None, max_outage_s: float
) -> Iterator[pa.Table]:
    """Yield tables that together contain the shards' rows, in order."""
    fields = {"uri": uri, "columns": columns, "cache": json.dumps(cache and vars(cache)), "max_outage_s": max_outage_s}
    items = [fields | {"shards": json.dumps([vars(shard) for shard in group])} for group in _group_by_task(shards)]
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
    """Yield groups of consecutive shards, one per task."""
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(s.bytes or TASK_BYTES for s in group) >= TASK_BYTES:
            yield group
            group = []
    if group:
        yield group


def _split_blocks(blocks: Iterator[pa.Table], shards: list[Shard], kind: type[R]) -> Iterator[R]:
    """Yield the rows of each shard from blocks that contain several shards or parts of one."""
    tables: list[pa.Table] = []
    for shard in shards:
        while sum(table.num_rows for table in tables) < shard.rows:
            tables.append(next(blocks))
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        yield kind.from_table(table.slice(0, shard.rows)).copy()  # a view would keep Ray's memory alive
        tables = [table.slice(shard.rows)] if table.num_rows > shard.rows else []


def _read_item(item: pa.Table) -> pa.Table:
    """Read some shards as one block of Arrow memory, which workers on its node share without copying.

    An error is returned as a row, because Ray would retry a task that raises and hide its message.
    """
    (fields,) = item.to_pylist()
    try:
        folder = open_folder(fields["uri"])
        shards = [Shard(**shard) for shard in json.loads(fields["shards"])]
        cache_fields = json.loads(fields["cache"])
        cache = cache_fields and ShardCache(**cache_fields)
        outage_timer = OutageTimer(fields["max_outage_s"], is_remote=folder.is_remote)
        reads = (partial(read_table, folder, shard, columns=fields["columns"], cache=cache) for shard in shards)
        return pa.concat_tables([retry_while_away(read, outage_timer, fields["uri"]) for read in reads])
    except StoreError as error:
        return pa.table({_ERROR: [str(error)]})


def find_damaged_shards(uri: str, shards: list[Shard], *, with_ray: bool) -> dict[str, str]:
    """Read all shards; return the problem of each missing or damaged one by its file."""
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
