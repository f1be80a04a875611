"""The timing of clips: a column that shards for imported teachers have, and others lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.dataset import LatentDataset, stream_batches
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from presto_core.training.state import Cursor
from tests.support import synthetic_dataset
from tests.support.synthetic_dataset import make_dataset, rows


def add_timing(count: int, seed: int, *args: object) -> FullRows:
    made = rows(count, seed)
    return replace(made, timing=np.stack([made.start_seconds, 100 + made.start_seconds], axis=1))


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentDataset:
    monkeypatch.setattr(synthetic_dataset, "rows", add_timing)
    return make_dataset(str(tmp_path / "timed"))


def test_timing_reaches_batches_and_whole_rows(timed: LatentDataset):
    batch = next(stream_batches(timed, seed=0, cursor=Cursor(), global_batch_size=30))
    assert batch.cond.timing is not None
    pairs = sorted(batch.cond.timing.tolist())
    assert pairs == sorted([start, 100 + start] for shard in (10, 7, 13) for start in map(float, range(shard)))
    (first, *_) = read_with_threads(timed.uri, timed.shards("train"), FullRows)
    taken, joined = first.take(slice(0, 2)).timing, FullRows.concatenate([first, first.copy()]).timing
    assert taken is not None
    assert taken.tolist() == [[0, 100], [1, 101]]
    assert joined is not None
    assert joined.shape == (20, 2)


def test_shards_without_timing_are_read_as_before(tmp_path: Path):
    data = make_dataset(str(tmp_path / "data"))
    assert next(stream_batches(data, seed=0, cursor=Cursor(), global_batch_size=30)).cond.timing is None
    (first, *_) = read_with_threads(data.uri, data.shards("train"), FullRows)
    assert first.timing is None
    assert FullRows.concatenate([first.take(slice(0, 2)), first]).timing is None
