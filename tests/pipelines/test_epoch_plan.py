"""The plan of an epoch: every row once, distributed evenly, from any batch on, with no unnecessary reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import epoch_plan
from pipelines.data.epoch_plan import MAX_LANES, EpochPlan, Window, WorkerSlice, num_lanes, shards_to_read

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
BATCHES = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 30])


def plan(shards: list[int], batch: int, *, epoch: int = 0, seed: int = 0, window_rows: int = 64) -> EpochPlan:
    """Plan with small windows, so that each lane has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "WINDOW_ROWS", window_rows)
        return EpochPlan.from_shard_rows(shards, seed=seed, epoch=epoch, global_batch_size=batch)


def rows_of(window: Window) -> list[tuple[int, int]]:
    """Return (shard, row) of a window in its order."""
    rows = [(piece.shard, row) for piece in window.row_ranges for row in range(piece.start, piece.stop)]
    return [rows[i] for i in window.order()]


def lane_rows(made: EpochPlan, lane: int) -> list[tuple[int, int]]:
    return [row for window in made.lanes[lane] for row in rows_of(window)]


def batches_of(made: EpochPlan, shares: list[WorkerSlice], *, first: int = 0) -> list[list[tuple[int, int]]]:
    """Return a worker's batches, computed with a slow loop over whole lanes."""
    lanes = {share.lane: lane_rows(made, share.lane) for share in shares}
    k = made.rows_per_lane
    return [
        [row for s in shares for row in lanes[s.lane][b * k + s.start : b * k + s.stop]]
        for b in range(first, made.batches)
    ]


@given(SHARDS, BATCHES, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_an_epoch_holds_rows_once_and_all_but_an_incomplete_batch(shards: list[int], batch: int, epoch: int):
    made = plan(shards, batch, epoch=epoch)
    rows = [row for lane in range(len(made.lanes)) for row in lane_rows(made, lane)]
    assert len(rows) == len(set(rows)) == sum(shards) // batch * batch
    assert all(0 <= row < shards[shard] for shard, row in rows)


@given(SHARDS, st.sampled_from([12, 24]), st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=100, deadline=None)
def test_workers_share_each_batch_whatever_their_number(shards: list[int], batch: int, world_size: int):
    made = plan(shards, batch)
    (alone,) = [batches_of(made, made.worker_slices(rank=0, world_size=1))]
    parts = [batches_of(made, made.worker_slices(rank=r, world_size=world_size)) for r in range(world_size)]
    for number, whole in enumerate(alone):
        together = [row for part in parts for row in part[number]]
        assert together == whole
        assert all(len(part[number]) == batch // world_size for part in parts)


@given(SHARDS, BATCHES, st.data())
@settings(max_examples=150, deadline=None)
def test_a_worker_reads_the_windows_it_uses_in_the_order_of_their_use(
    shards: list[int], batch: int, data: st.DataObject
):
    made = plan(shards, batch)
    if not made.batches:
        return
    world_size = data.draw(st.sampled_from([n for n in (1, 2, 3, 4) if batch % n == 0]))
    rank, first = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, made.batches - 1))
    shares = made.worker_slices(rank=rank, world_size=world_size)
    home = {row: w for lane in made.lanes for w in lane for row in rows_of(w)}
    used: list[Window] = []
    for row in (row for rows in batches_of(made, shares, first=first) for row in rows):
        if home[row] not in used:
            used.append(home[row])
    assert made.windows_to_read(shares, first_batch=first) == used


def list_shards_to_read(made: EpochPlan, *, rank: int = 0, world_size: int = 1, first_batch: int = 0) -> list[int]:
    return list(
        shards_to_read(
            made.windows_to_read(made.worker_slices(rank=rank, world_size=world_size), first_batch=first_batch)
        )
    )


def test_a_worker_of_many_reads_its_share_of_the_shards():
    made = plan([128] * 640, 256, window_rows=epoch_plan.WINDOW_ROWS)
    assert len(made.lanes) == MAX_LANES
    for world_size in (1, 2, 8, 32):
        read = [len(list_shards_to_read(made, rank=rank, world_size=world_size)) for rank in range(world_size)]
        assert sum(read) <= 640 + MAX_LANES  # a shard on the border of two lanes is read for both
        assert max(read) <= (640 + MAX_LANES) / world_size


def test_reading_is_steady():
    """The number of shards read per ten batches never exceeds the mean by much, once the windows are open."""
    made = plan([128] * 640, 256, window_rows=epoch_plan.WINDOW_ROWS)
    shares = made.worker_slices(rank=0, world_size=1)
    left = [len(list_shards_to_read(made, first_batch=b)) for b in range(0, made.batches, 10)]
    reading = made.windows_to_read(shares, first_batch=0)
    used = np.array([made._first_batch_using(w, shares[w.lane], 0) for w in reading])
    opened = np.bincount(used // 10, minlength=made.batches // 10)[1:-1]
    assert opened.max() <= 1.6 * opened.mean()
    assert left[0] >= left[len(left) // 2] >= left[-1]


def test_no_more_rows_are_held_than_a_window_has():
    for shard_rows, batch in ((128, 256), (512, 64), (2048, 32), (4000, 32)):
        made = plan([shard_rows] * 100, batch, window_rows=epoch_plan.WINDOW_ROWS)
        held = max(w.end - w.begin for lane in made.lanes for w in lane) + shard_rows
        assert held * len(made.lanes) <= epoch_plan.WINDOW_ROWS


def test_skipping_ahead_reads_what_is_left_of_the_epoch():
    made = plan([128] * 640, 256, window_rows=epoch_plan.WINDOW_ROWS)
    left = list_shards_to_read(made, first_batch=made.batches * 3 // 4)
    assert len(left) <= len(list_shards_to_read(made)) / 4 + MAX_LANES


def test_lanes_follow_from_data_and_batch_alone():
    assert num_lanes([128], 16) == 1
    assert num_lanes([128] * 640, 256) == 32
    assert num_lanes([128] * 640, 96) == 32
    assert num_lanes([128] * 640, 24) == 24
    assert num_lanes([128] * 20, 16) == 4
    assert num_lanes([512] * 640, 256) == 8
    assert num_lanes([128] * 10_000, 7) == 7


def test_order_depends_on_seed_and_epoch_alone():
    shards = [10, 7, 13, 20, 9, 11, 30, 8]
    orders = [batches_of(p, p.worker_slices(rank=0, world_size=1)) for p in (
        plan(shards, 6), plan(shards, 6), plan(shards, 6, epoch=1), plan(shards, 6, seed=1)
    )]  # fmt: skip
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_batches_mix_shards():
    """A batch of 64 rows draws from about as many shards as there are lanes, in an order without trend."""
    made = plan([128] * 320, 64, window_rows=epoch_plan.WINDOW_ROWS)
    batches = batches_of(made, made.worker_slices(rank=0, world_size=1))
    assert all(len({shard for shard, _ in rows}) > 30 for rows in batches)
    numbers = np.array([row for rows in batches for _, row in rows])
    assert numbers.mean() == pytest.approx(63.5, abs=0.5)
