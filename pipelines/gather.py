"""From an epoch's plan to the rows of each batch: windows are read in the order of their use, and gathered from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from pipelines import epoch_plan
from pipelines.epoch_plan import EpochPlan, Piece, Share, Window, shards_to_read
from pipelines.reading import Reader
from pipelines.shards import Array, Rows, Shard


class Source:
    """Windows of rows through a reader. A split that fits into one window is read once and kept."""

    def __init__(self, uri: str, shards: list[Shard], reader: Reader) -> None:
        self.uri, self.shards, self.reader = uri, shards, reader
        self.first_row = np.cumsum([0, *(s.rows for s in shards)])
        self.keeps = int(self.first_row[-1]) <= epoch_plan.WINDOW_ROWS
        self.kept: list[Rows] = []

    def windows(self, windows: list[Window]) -> Iterator[Loaded]:
        """Rows of windows, in order, each shard read once for a lane."""
        fresh = iter(self._read(list(shards_to_read(windows))))
        rest: dict[int, Rest] = {}
        for window in windows:
            parts = []
            for piece in window.pieces:
                if window.lane not in rest or rest[window.lane].shard != piece.shard:
                    rest[window.lane] = Rest(piece.shard, 0, next(fresh))
                found, rest[window.lane] = rest[window.lane].split(piece)
                parts.append(found)
            ids = [self.first_row[p.shard] + np.arange(p.start, p.stop) for p in window.pieces]
            yield Loaded(window, Rows.cat(parts), np.concatenate(ids), window.order())

    def _read(self, shards: list[int]) -> Iterable[Rows]:
        if not self.keeps:
            return self.reader(self.uri, [self.shards[i] for i in shards])
        if not self.kept:
            self.kept = list(self.reader(self.uri, self.shards))
        return (self.kept[i] for i in shards)


@dataclass(frozen=True)
class Rest:
    """What is left of the shard that a lane is in: rows from number `start` on."""

    shard: int
    start: int
    rows: Rows

    def split(self, piece: Piece) -> tuple[Rows, Rest]:
        """A piece's rows, and what comes after them, copied: Ray's memory is given back."""
        found = self.rows.take(slice(piece.start - self.start, piece.stop - self.start))
        after = self.rows.take(slice(piece.stop - self.start, None))
        return found, Rest(self.shard, piece.stop, after.copy())


@dataclass(frozen=True)
class Loaded:
    """A window's rows, their numbers in the data set, and their order."""

    window: Window
    rows: Rows
    ids: Array
    order: Array

    def between(self, start: int, stop: int) -> tuple[Loaded, Array]:
        """Index of the rows at positions `start` ... `stop` of the lane."""
        return self, self.order[start - self.window.begin : stop - self.window.begin]


Part = tuple[Loaded, Array]


def batches_of(plan: EpochPlan, shares: list[Share], source: Source, *, first_batch: int) -> Iterator[list[Part]]:
    """What each of a worker's batches is made of, from `first_batch` of the epoch on."""
    coming = source.windows(plan.reading(shares, first_batch=first_batch))
    open_: dict[int, Loaded] = {}
    for batch in range(first_batch, plan.batches):
        parts: list[Part] = []
        for share in shares:
            begin = batch * plan.rows_a_lane
            position, stop = begin + share.start, begin + share.stop
            while position < stop:
                while share.lane not in open_ or open_[share.lane].window.end <= position:
                    loaded = next(coming)
                    open_[loaded.window.lane] = loaded
                until = min(stop, open_[share.lane].window.end)
                parts.append(open_[share.lane].between(position, until))
                position = until
        yield parts


def gathered(parts: list[Part]) -> tuple[Rows, Array]:
    """The rows of a batch, copied together once, and their numbers in the data set."""
    ids = np.concatenate([loaded.ids[index] for loaded, index in parts])
    columns = {}
    for name in (f.name for f in fields(Rows)):
        first = getattr(parts[0][0].rows, name)
        column = np.empty((len(ids), *first.shape[1:]), dtype=first.dtype)
        done = 0
        for loaded, index in parts:
            column[done : done + len(index)] = getattr(loaded.rows, name)[index]
            done += len(index)
        columns[name] = column
    return Rows(**columns), ids
