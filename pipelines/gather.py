"""From an epoch's plan to the rows of each batch: windows are read in the order of their use, and gathered from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from pipelines import epoch_plan
from pipelines.epoch_plan import EpochPlan, Piece, Share, Window
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
        pieces = iter(self._read([piece for window in windows for piece in window.pieces]))
        for window in windows:
            parts = [next(pieces) for _ in window.pieces]
            ids = [self.first_row[p.shard] + np.arange(p.start, p.stop) for p in window.pieces]
            yield Loaded(window, Rows.cat(parts), np.concatenate(ids), window.order())

    def _read(self, pieces: list[Piece]) -> Iterator[Rows]:
        if self.keeps and not self.kept:
            self.kept = list(self.reader(self.uri, self.shards))
        of_pieces = (
            (self.kept[p.shard] for p in pieces)
            if self.keeps
            else self.reader(self.uri, [self.shards[p.shard] for p in pieces])
        )
        for piece, rows in zip(pieces, of_pieces):
            yield rows.take(slice(piece.start, piece.stop))


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
