"""From an epoch's plan to the rows of each batch: windows are read in the order of their use, and gathered from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from pipelines import epoch_plan
from pipelines.epoch_plan import EpochPlan, Share, Window, shards_to_read
from pipelines.reading import Reader
from pipelines.shards import Array, Rows, Shard

Place = tuple[Rows, int, int]
"""A row: rows read together, its number among them, and its number in the data set."""


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
        current: dict[int, tuple[int, Rows]] = {}
        for window in windows:
            places: list[Place] = []
            for piece in window.pieces:
                if window.lane not in current or current[window.lane][0] != piece.shard:
                    current[window.lane] = (piece.shard, next(fresh))
                rows, first = current[window.lane][1], int(self.first_row[piece.shard])
                places += [(rows, row, first + row) for row in range(piece.start, piece.stop)]
            yield Loaded(window, [places[i] for i in window.order()])

    def _read(self, shards: list[int]) -> Iterable[Rows]:
        if not self.keeps:
            return self.reader(self.uri, [self.shards[i] for i in shards])
        if not self.kept:
            self.kept = list(self.reader(self.uri, self.shards))
        return (self.kept[i] for i in shards)


@dataclass(frozen=True)
class Loaded:
    """A window whose shards have been read.

    Attributes:
        places: where its rows are, in their order.
    """

    window: Window
    places: list[Place]

    def between(self, start: int, stop: int) -> list[Place]:
        """The rows at positions `start` ... `stop` of the lane."""
        return self.places[start - self.window.begin : stop - self.window.begin]


def batches_of(plan: EpochPlan, shares: list[Share], source: Source, *, first_batch: int) -> Iterator[list[Place]]:
    """What each of a worker's batches is made of, from `first_batch` of the epoch on."""
    coming = source.windows(plan.reading(shares, first_batch=first_batch))
    open_: dict[int, Loaded] = {}
    for batch in range(first_batch, plan.batches):
        places: list[Place] = []
        for share in shares:
            begin = batch * plan.rows_a_lane
            position, stop = begin + share.start, begin + share.stop
            while position < stop:
                while share.lane not in open_ or open_[share.lane].window.end <= position:
                    loaded = next(coming)
                    open_[loaded.window.lane] = loaded
                until = min(stop, open_[share.lane].window.end)
                places += open_[share.lane].between(position, until)
                position = until
        yield places


def gathered(places: list[Place]) -> tuple[Rows, Array]:
    """The rows of a batch, copied together, and their numbers in the data set."""
    columns = {}
    for name in (f.name for f in fields(Rows)):
        first = getattr(places[0][0], name)
        column = np.empty((len(places), *first.shape[1:]), dtype=first.dtype)
        for i, (rows, row, _) in enumerate(places):
            column[i] = getattr(rows, name)[row]
        columns[name] = column
    return Rows(**columns), np.array([number for _, _, number in places])
