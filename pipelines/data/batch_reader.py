"""Read the rows of each batch that the epoch plans ask for: load windows in the order of use and gather from them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import tee
from typing import TypeVar

import numpy as np

from pipelines.data import epoch_plan
from pipelines.data.epoch_plan import EpochPlan, Ints, Window, WorkerSlice, shards_to_read
from pipelines.data.parquet_tensors import Array
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import Reader
from pipelines.data.shards import OPTIONAL, Shard, ShardRows, TrainColumns


@dataclass(frozen=True)
class EpochRead:
    """The part of one epoch that a worker reads.

    Attributes:
        epoch: number of the epoch.
        slices: the worker's slice of each lane.
        first_batch: first batch of the epoch to yield.
    """

    epoch: int
    plan: EpochPlan
    slices: list[WorkerSlice]
    first_batch: int

    @cached_property
    def windows(self) -> list[Window]:
        """Return the windows to read, in the order of use."""
        return self.plan.windows_to_read(self.slices, first_batch=self.first_batch)


@dataclass(frozen=True)
class LoadedWindow:
    """A window whose shards have been read.

    Attributes:
        shards: the shards of its rows.
        shard_index, row_index, dataset_row: for each row, in the window's order: index into `shards`, row in that
            shard, and row in the data set.
    """

    window: Window
    shards: list[ShardRows]
    shard_index: Ints
    row_index: Ints
    dataset_row: Ints


class EpochReader:
    """Reads the rows of epochs; its reader starts on the next epoch before the current one ends.

    A split that fits into one window is read once and stays in memory; the shards of larger ones are kept in `cache`.
    """

    def __init__(self, uri: str, shards: list[Shard], reader: Reader, cache: ShardCache | None = None) -> None:
        self.uri, self.shards, self.reader, self.cache = uri, shards, reader, cache
        self.first_row = np.cumsum([0, *(s.rows for s in shards)])

    def iter_batches(self, epochs: Iterator[EpochRead]) -> Iterator[tuple[EpochRead, int, TrainColumns, Ints]]:
        """Yield each batch of each epoch: its EpochRead, number, rows, and the rows' indices in the data set."""
        epochs_to_yield, epochs_to_read = tee(epochs)
        shard_rows = iter(self._read_shards(epochs_to_read))
        for epoch_read in epochs_to_yield:
            windows = self._load_windows(epoch_read.windows, shard_rows)
            for number, positions in enumerate(_locate_rows(epoch_read, windows), epoch_read.first_batch):
                yield epoch_read, number, *gather_rows(positions)

    def _load_windows(self, windows: list[Window], shard_rows: Iterator[ShardRows]) -> Iterator[LoadedWindow]:
        """Yield windows with their shards; each shard is read once per lane."""
        current: dict[int, tuple[int, ShardRows]] = {}
        for window in windows:
            shards, shard_index, row_index, dataset_row = list[ShardRows](), list[Ints](), list[Ints](), list[Ints]()
            for row_range in window.row_ranges:
                if window.lane not in current or current[window.lane][0] != row_range.shard:
                    current[window.lane] = (row_range.shard, next(shard_rows))
                rows = np.arange(row_range.start, row_range.stop)
                shard_index.append(np.full(len(rows), len(shards)))
                row_index.append(rows)
                dataset_row.append(self.first_row[row_range.shard] + rows)
                shards.append(current[window.lane][1])
            order = window.order()
            columns = (np.concatenate(column)[order] for column in (shard_index, row_index, dataset_row))
            yield LoadedWindow(window, shards, *columns)

    def _read_shards(self, epochs: Iterator[EpochRead]) -> Iterable[ShardRows]:
        order = (shard for epoch_read in epochs for shard in shards_to_read(epoch_read.windows))
        if int(self.first_row[-1]) > epoch_plan.WINDOW_ROWS:
            return self.reader(self.uri, (self.shards[i] for i in order), ShardRows, cache=self.cache)
        shard_rows = list(self.reader(self.uri, self.shards, ShardRows))
        return (shard_rows[i] for i in order)


RowPositions = list[tuple[LoadedWindow, int, int]]
"""Rows of a batch: (window, start, stop)."""


def _locate_rows(epoch_read: EpochRead, windows: Iterator[LoadedWindow]) -> Iterator[RowPositions]:
    """Yield the row positions of each of a worker's batches in an epoch."""
    plan = epoch_read.plan
    current: dict[int, LoadedWindow] = {}
    for batch in range(epoch_read.first_batch, plan.batches):
        positions: RowPositions = []
        for worker_slice in epoch_read.slices:
            begin = batch * plan.rows_per_lane
            position, stop = begin + worker_slice.start, begin + worker_slice.stop
            while position < stop:
                while worker_slice.lane not in current or current[worker_slice.lane].window.end <= position:
                    loaded = next(windows)
                    current[loaded.window.lane] = loaded
                active = current[worker_slice.lane]
                until = min(stop, active.window.end)
                positions.append((active, position - active.window.begin, until - active.window.begin))
                position = until
        yield positions


def gather_rows(positions: RowPositions) -> tuple[TrainColumns, Ints]:
    """Copy the rows of a batch together; return them and their indices in the data set."""
    sources = [
        (loaded.shards[shard], row)
        for loaded, start, stop in positions
        for shard, row in zip(loaded.shard_index[start:stop].tolist(), loaded.row_index[start:stop].tolist())
    ]
    first = sources[0][0]
    columns = {
        name: _stack([getattr(rows, name)[row] for rows, row in sources])
        for name in (*TrainColumns.columns(), *OPTIONAL)
        if getattr(first, name) is not None
    }
    return TrainColumns(**columns), np.concatenate(
        [loaded.dataset_row[start:stop] for loaded, start, stop in positions]
    )


def _stack(values: list[Array]) -> Array:
    column = np.empty((len(values), *values[0].shape), dtype=values[0].dtype)
    for i, value in enumerate(values):
        column[i] = value
    return column


T = TypeVar("T")

_POLL_S = 0.1  # how often a blocked producer checks whether the consumer has closed
_CLOSE_TIMEOUT_S = 10.0  # for a closed producer to finish its current item


def prefetch(make: Callable[[], Generator[T, None, None]], *, depth: int) -> Generator[T, None, None]:
    """Yield the items of `make()` in order, with up to `depth` of them prepared in a background thread.

    An exception of the iterator is raised here, at its item. Closing this generator ends the thread.
    """
    items: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(has_item: bool, item: T | BaseException | None) -> None:
        while not closed.is_set():
            try:
                items.put((has_item, item), timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def produce() -> None:
        iterator = make()
        try:
            for item in iterator:
                put(True, item)
                if closed.is_set():
                    break
            put(False, None)
        except BaseException as error:  # of any class: it is re-raised in the consumer
            put(False, error)
        finally:
            iterator.close()

    thread = threading.Thread(target=produce, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            has_item, item = items.get()
            if isinstance(item, BaseException) and not has_item:
                raise item
            if not has_item:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join(_CLOSE_TIMEOUT_S)
