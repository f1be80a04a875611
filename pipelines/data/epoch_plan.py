"""Plan the order of an epoch: which rows of which shards go into which batch and to which worker (indices only).

Shards are permuted and concatenated, and the sequence is cut into lanes of equal length. Every global batch takes the
same number of rows from each lane; inside a lane, rows are permuted within windows. Lanes depend on the data set and
the batch size only, so the order is the same for any number of workers; a worker reads only the lanes it takes rows
from. Windows of different lanes end at different times, so that reads are spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

WINDOW_ROWS = 8192  # rows in memory at once, over all lanes; some 300 MB at the laptop preset's shapes
MAX_LANES = 32
SHARDS_PER_LANE = 4  # at least, if possible: a shard on the border of two lanes is read twice


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of one shard."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Row ranges of a lane whose rows are permuted together.

    Attributes:
        begin: position of its first row in the lane.
        seed: seed of its permutation.
    """

    lane: int
    begin: int
    row_ranges: tuple[RowRange, ...]
    seed: tuple[int, ...]

    @cached_property
    def end(self) -> int:
        return self.begin + sum(map(len, self.row_ranges))

    def order(self) -> Ints:
        """Return the permutation of its rows."""
        return np.random.default_rng(self.seed).permutation(self.end - self.begin)


@dataclass(frozen=True)
class WorkerSlice:
    """A worker's part of a lane: rows [start, stop) of those that each global batch takes from it."""

    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochPlan:
    """The plan of one epoch.

    Attributes:
        lanes: windows of each lane, in order.
        rows_per_lane: rows that one global batch takes from each lane.
        batches: number of complete global batches in the epoch.
    """

    lanes: list[list[Window]]
    rows_per_lane: int
    batches: int

    @staticmethod
    def from_shard_rows(shard_rows: Sequence[int], *, seed: int, epoch: int, global_batch_size: int) -> EpochPlan:
        """Plan an epoch from the number of rows in each shard."""
        batches = sum(shard_rows) // global_batch_size
        lanes = num_lanes(shard_rows, global_batch_size)
        rows_per_lane = global_batch_size // lanes
        length = batches * rows_per_lane
        shard_order = np.random.default_rng([seed, epoch]).permutation(len(shard_rows))
        ends = np.cumsum(np.asarray(shard_rows, dtype=np.int64)[shard_order])
        starts = ends - np.asarray(shard_rows, dtype=np.int64)[shard_order]
        lane_windows = []
        for lane in range(lanes):
            first, last = lane * length, (lane + 1) * length
            touched = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left")))
            row_ranges = [
                RowRange(int(shard_order[i]), int(max(first - starts[i], 0)), int(min(last, ends[i]) - starts[i]))
                for i in touched
            ]
            # half of a lane's memory is for the window, half for the rest of the shard in which it ends
            size = max(WINDOW_ROWS // lanes // 2, 1)
            lane_windows.append(
                _cut_windows(lane, row_ranges, size=size, first=-(-size * (lane + 1) // lanes), seed=(seed, epoch))
            )
        return EpochPlan(lane_windows, rows_per_lane, batches)

    def worker_slices(self, *, rank: int, world_size: int) -> list[WorkerSlice]:
        """Return a worker's slice of each lane; the global batch is laid out lane by lane."""
        rows_per_worker = self.rows_per_lane * len(self.lanes) // world_size
        slices = []
        for lane in range(len(self.lanes)):
            begin = lane * self.rows_per_lane
            start, stop = (
                max(rank * rows_per_worker - begin, 0),
                min((rank + 1) * rows_per_worker - begin, self.rows_per_lane),
            )
            if start < stop:
                slices.append(WorkerSlice(lane, start, stop))
        return slices

    def windows_to_read(self, slices: list[WorkerSlice], *, first_batch: int) -> list[Window]:
        """Return the windows that a worker needs from `first_batch` on, in the order of first use."""
        needed = [
            (batch, window)
            for worker_slice in slices
            for window in self.lanes[worker_slice.lane]
            if (batch := self._first_batch_using(window, worker_slice, first_batch)) is not None
        ]
        return [window for _, window in sorted(needed, key=lambda n: (n[0], n[1].lane, n[1].begin))]

    def _first_batch_using(self, window: Window, worker_slice: WorkerSlice, first_batch: int) -> int | None:
        """Return the first batch from `first_batch` on that uses rows of the window; None if there is none."""
        batch = max(window.begin // self.rows_per_lane, first_batch)
        if batch * self.rows_per_lane + worker_slice.stop <= window.begin:
            batch += 1
        return batch if batch * self.rows_per_lane + worker_slice.start < window.end else None


def num_lanes(shard_rows: Sequence[int], global_batch_size: int) -> int:
    """Return the most lanes that divide a global batch, have enough shards each, and fit into `WINDOW_ROWS`."""
    max_lanes = min(
        MAX_LANES, len(shard_rows) // SHARDS_PER_LANE, WINDOW_ROWS // (2 * max(shard_rows)), global_batch_size
    )
    return next(n for n in range(max(max_lanes, 1), 0, -1) if global_batch_size % n == 0)


def _cut_windows(
    lane: int, row_ranges: list[RowRange], *, size: int, first: int, seed: tuple[int, int]
) -> list[Window]:
    """Cut row ranges into windows of `size` rows, except for the first and the last one."""
    windows, begin, group, rows_left = list[Window](), 0, list[RowRange](), first
    for row_range in row_ranges:
        start = row_range.start
        while start < row_range.stop:
            stop = min(row_range.stop, start + rows_left)
            group.append(RowRange(row_range.shard, start, stop))
            start, rows_left = stop, rows_left - (stop - start)
            if not rows_left:
                windows.append(Window(lane, begin, tuple(group), (*seed, lane, begin)))
                begin, group, rows_left = windows[-1].end, [], size
    if group:
        windows.append(Window(lane, begin, tuple(group), (*seed, lane, begin)))
    return windows


def shards_to_read(windows: Sequence[Window]) -> Iterator[int]:
    """Yield the shards that windows need, in order; a shard that continues in a lane's next window comes once."""
    last: dict[int, int] = {}
    for window in windows:
        for row_range in window.row_ranges:
            if last.get(window.lane) != row_range.shard:
                last[window.lane] = row_range.shard
                yield row_range.shard
