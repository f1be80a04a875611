"""From the plans of epochs to the rows of each batch: windows are read in the order of their use, and gathered from."""

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
from pipelines.data.epoch_plan import (
    EpochPlan,
    Ints,
    Share,
    Window,
    shards_to_read,
)
from pipelines.data.parquet_tensors import Array
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import Reader
from pipelines.data.shards import (
    Examples,
    Held,
    Shard,
)


@dataclass(frozen=True)
class Reading:
    """What a worker reads of one epoch.

    Attributes:
        epoch: its number.
        shares: the worker's part of each lane.
        first_batch: of the epoch that is still to come.
    """

    epoch: int
    plan: EpochPlan
    shares: list[Share]
    first_batch: int

    @cached_property
    def windows(self) -> list[Window]:
        """Needed of the epoch, in the order of their use."""
        return self.plan.reading(self.shares, first_batch=self.first_batch)


@dataclass(frozen=True)
class Loaded:
    """A window whose shards have been read.

    Attributes:
        pieces: the shards its rows are of.
        piece, row, number: of each row in the window's order: its shard, its place there, and its number in the data
            set.
    """

    window: Window
    pieces: list[Held]
    piece: Ints
    row: Ints
    number: Ints


class Source:
    """Rows of epochs through a reader, which reads on into the next epoch before one has ended.

    A split that fits into one window is read once and kept in memory; shards of a larger one are kept in `cache`.
    """

    def __init__(self, uri: str, shards: list[Shard], reader: Reader, cache: ShardCache | None = None) -> None:
        self.uri, self.shards, self.reader, self.cache = uri, shards, reader, cache
        self.first_row = np.cumsum([0, *(s.rows for s in shards)])

    def batches(self, epochs: Iterator[Reading]) -> Iterator[tuple[Reading, int, Examples, Ints]]:
        """Each batch of each epoch: its number there, its rows, and their numbers in the data set."""
        used, read = tee(epochs)
        fresh = iter(self._read(read))
        for reading in used:
            coming = self._loaded(reading.windows, fresh)
            for number, places in enumerate(_places(reading, coming), reading.first_batch):
                yield reading, number, *gathered(places)

    def _loaded(self, windows: list[Window], fresh: Iterator[Held]) -> Iterator[Loaded]:
        """Windows with their rows, each shard taken once for a lane."""
        current: dict[int, tuple[int, Held]] = {}
        for window in windows:
            pieces, piece, row, number = list[Held](), list[Ints](), list[Ints](), list[Ints]()
            for part in window.pieces:
                if window.lane not in current or current[window.lane][0] != part.shard:
                    current[window.lane] = (part.shard, next(fresh))
                rows = np.arange(part.start, part.stop)
                piece.append(np.full(len(rows), len(pieces)))
                row.append(rows)
                number.append(self.first_row[part.shard] + rows)
                pieces.append(current[window.lane][1])
            order = window.order()
            columns = (np.concatenate(column)[order] for column in (piece, row, number))
            yield Loaded(window, pieces, *columns)

    def _read(self, epochs: Iterator[Reading]) -> Iterable[Held]:
        order = (shard for reading in epochs for shard in shards_to_read(reading.windows))
        if int(self.first_row[-1]) > epoch_plan.WINDOW_ROWS:
            return self.reader(self.uri, (self.shards[i] for i in order), Held, cache=self.cache)
        kept = list(self.reader(self.uri, self.shards, Held))
        return (kept[i] for i in order)


Places = list[tuple[Loaded, int, int]]
"""Rows of a batch: from where to where of which windows."""


def _places(reading: Reading, coming: Iterator[Loaded]) -> Iterator[Places]:
    """What each of a worker's batches in an epoch is made of."""
    plan = reading.plan
    open_: dict[int, Loaded] = {}
    for batch in range(reading.first_batch, plan.batches):
        places: Places = []
        for share in reading.shares:
            begin = batch * plan.rows_a_lane
            position, stop = begin + share.start, begin + share.stop
            while position < stop:
                while share.lane not in open_ or open_[share.lane].window.end <= position:
                    loaded = next(coming)
                    open_[loaded.window.lane] = loaded
                found = open_[share.lane]
                until = min(stop, found.window.end)
                places.append((found, position - found.window.begin, until - found.window.begin))
                position = until
        yield places


def gathered(places: Places) -> tuple[Examples, Ints]:
    """The rows of a batch, copied together, and their numbers in the data set."""
    sources = [
        (loaded.pieces[piece], row)
        for loaded, start, stop in places
        for piece, row in zip(loaded.piece[start:stop].tolist(), loaded.row[start:stop].tolist())
    ]
    columns = {name: _stacked([getattr(rows, name)[row] for rows, row in sources]) for name in Examples.columns()}
    return Examples(**columns), np.concatenate([loaded.number[start:stop] for loaded, start, stop in places])


def _stacked(values: list[Array]) -> Array:
    column = np.empty((len(values), *values[0].shape), dtype=values[0].dtype)
    for i, value in enumerate(values):
        column[i] = value
    return column


T = TypeVar("T")

_LOOK_S = 0.1  # how often a full queue looks whether anyone still wants its items
_PATIENCE_S = 10.0  # that a closed iterator is given to finish the item it makes


def ahead(make: Callable[[], Generator[T, None, None]], *, depth: int) -> Generator[T, None, None]:
    """Items of `make()`, up to `depth` of them made before they are asked for, in order.

    What the iterator raises is raised here, at the item it belongs to. Closing this generator ends the thread.
    """
    items: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(found: bool, item: T | BaseException | None) -> None:
        while not closed.is_set():
            try:
                items.put((found, item), timeout=_LOOK_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        made = make()
        try:
            for item in made:
                put(True, item)
                if closed.is_set():
                    break
            put(False, None)
        except BaseException as error:  # whatever it is, it belongs to the one who asks
            put(False, error)
        finally:
            made.close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            found, item = items.get()
            if isinstance(item, BaseException) and not found:
                raise item
            if not found:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join(_PATIENCE_S)
