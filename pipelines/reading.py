"""Shards from storage in a given order: in this process, or read ahead by Ray Data tasks; each checked by its hash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipelines.cluster import READER_CPUS
from pipelines.shards import Rows, Shard, read_table
from pipelines.storage import open_folder
from presto_core.registry.store import StoreError

Reader = Callable[[str, list[Shard]], Iterable[Rows]]

SHARDS_A_PLAN = 256  # that one execution of Ray Data reads: its start-up grows with their number
PREFETCHED_SHARDS = 2
_ERROR = "error"


def read_here(uri: str, shards: list[Shard]) -> Iterator[Rows]:
    """Shards one after another, read in this process.

    Raises:
        StoreError: one is missing or damaged.
    """
    folder = open_folder(uri)
    for shard in shards:
        yield Rows.of(read_table(folder, shard))


def read_with_ray(uri: str, shards: list[Shard]) -> Iterator[Rows]:
    """Shards in the given order, read ahead by Ray Data tasks: parallel, and no further than memory allows.

    Raises:
        StoreError: one is missing or damaged.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    for first in range(0, len(shards), SHARDS_A_PLAN):
        items = [{"uri": uri, **vars(shard)} for shard in shards[first : first + SHARDS_A_PLAN]]
        tasks = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _read_item, batch_format="pyarrow", batch_size=None, zero_copy_batch=True, num_cpus=READER_CPUS / 2
        )
        for table in tasks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARDS):
            if _ERROR in table.column_names:
                raise StoreError(table.column(_ERROR)[0].as_py())
            yield Rows.of(table)


def _read_item(item: pa.Table) -> pa.Table:
    """One shard as one block of Arrow memory, which workers on its node share without copying.

    What is wrong with a shard is said in its place: raised here, Ray would run the task again and bury the sentence.
    """
    fields: dict[str, Any] = item.to_pylist()[0]
    try:
        return read_table(open_folder(fields.pop("uri")), Shard(**fields))
    except StoreError as error:
        return pa.table({_ERROR: [str(error)]})


def damaged_shards(uri: str, shards: list[Shard], *, with_ray: bool) -> dict[str, str]:
    """Of the shards that are missing or damaged: file -> what is wrong with it. Reads all of them."""
    items = [{"uri": uri, **vars(shard)} for shard in shards]
    if with_ray:
        import ray.data

        checked = ray.data.from_items(items).map(_check_item, num_cpus=READER_CPUS / 2).iter_rows()
    else:
        checked = map(_check_item, items)
    return {row["file"]: row[_ERROR] for row in sorted(checked, key=lambda row: row["file"]) if row[_ERROR]}


def _check_item(item: dict[str, Any]) -> dict[str, Any]:
    table = _read_item(pa.Table.from_pylist([item]))
    wrong = table.column(_ERROR)[0].as_py() if _ERROR in table.column_names else ""
    return {"file": item["file"], _ERROR: wrong}
