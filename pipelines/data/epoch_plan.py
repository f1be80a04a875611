"""The order of an epoch: which rows of which shards go into which batch and to which worker; numbers only, no data.

Shards are permuted and laid end to end, and the line is cut into lanes of equal length. Every global batch takes the
same number of rows from each lane; inside a lane, rows are permuted within windows. Lanes depend on the data set and
the batch size, never on how many workers there are, so the order is the same for any number of them; a worker reads the
lanes it takes rows from and no others. Windows of different lanes end at different times, so that reading is steady.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

WINDOW_ROWS = 8192  # rows that are held at once, over all lanes; some 300 MB at the laptop preset's shapes
MAX_LANES = 32
SHARDS_PER_LANE = 4  # at least, where there are enough: a shard on the border of two lanes is read twice


@dataclass(frozen=True)
class RowRange:
    """Rows `start` ... `stop` of one shard."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Pieces of a lane whose rows are permuted together.

    Attributes:
        begin: position in the lane of its first row.
        seed: of its permutation.
    """

    lane: int
    begin: int
    row_ranges: tuple[RowRange, ...]
    seed: tuple[int, ...]

    @cached_property
    def end(self) -> int:
        return self.begin + sum(map(len, self.row_ranges))

    def order(self) -> Ints:
        """Permutation of its rows."""
        return np.random.default_rng(self.seed).permutation(self.end - self.begin)


@dataclass(frozen=True)
class WorkerSlice:
    """The part of a lane's rows that one worker takes: `start` ... `stop` of the rows that a batch takes of it."""

    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochPlan:
    """One epoch.

    Attributes:
        lanes: windows of each lane, in order.
        rows_a_lane: rows of a lane that one global batch takes.
        batches: global batches in the epoch; what does not fill one is left out.
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
            # half of a lane's rows are a window, the other half what is left of the shard it ends in
            size = max(WINDOW_ROWS // lanes // 2, 1)
            lane_windows.append(
                _cut_windows(lane, row_ranges, size=size, first=-(-size * (lane + 1) // lanes), seed=(seed, epoch))
            )
        return EpochPlan(lane_windows, rows_per_lane, batches)

    def worker_slices(self, *, rank: int, world_size: int) -> list[WorkerSlice]:
        """What a worker takes of each lane: its part of the global batch, laid out lane by lane."""
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
        """Windows a worker needs from `first_batch` on, in the order in which it comes to need them."""
        needed = [
            (batch, window)
            for worker_slice in slices
            for window in self.lanes[worker_slice.lane]
            if (batch := self._first_batch_using(window, worker_slice, first_batch)) is not None
        ]
        return [window for _, window in sorted(needed, key=lambda n: (n[0], n[1].lane, n[1].begin))]

    def _first_batch_using(self, window: Window, worker_slice: WorkerSlice, first_batch: int) -> int | None:
        """The first batch from `first_batch` on for which a worker takes rows of a window."""
        batch = max(window.begin // self.rows_per_lane, first_batch)
        if batch * self.rows_per_lane + worker_slice.stop <= window.begin:
            batch += 1
        return batch if batch * self.rows_per_lane + worker_slice.start < window.end else None


def num_lanes(shard_rows: Sequence[int], global_batch_size: int) -> int:
    """The most lanes that divide a global batch evenly, leave each some shards, and hold no more than WINDOW_ROWS."""
    max_lanes = min(
        MAX_LANES, len(shard_rows) // SHARDS_PER_LANE, WINDOW_ROWS // (2 * max(shard_rows)), global_batch_size
    )
    return next(n for n in range(max(max_lanes, 1), 0, -1) if global_batch_size % n == 0)


def _cut_windows(
    lane: int, row_ranges: list[RowRange], *, size: int, first: int, seed: tuple[int, int]
) -> list[Window]:
    """Pieces cut into windows of `size` rows, but for the first and the last one."""
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
    """The shards that windows need, in order; one that a lane's next window goes on with is not read again."""
    last: dict[int, int] = {}
    for window in windows:
        for row_range in window.row_ranges:
            if last.get(window.lane) != row_range.shard:
                last[window.lane] = row_range.shard
                yield row_range.shard
