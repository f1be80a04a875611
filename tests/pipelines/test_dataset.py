"""The training stream: complete, disjoint, reproducible, resumable at any row, checked against its hashes."""

from itertools import islice

import numpy as np
import pytest
import torch

from pipelines import dataset as dataset_module
from pipelines.dataset import LatentDataset, open_dataset, read_here, read_with_ray, stream
from presto_core.registry.store import StoreError
from presto_core.training.state import Batch, Cursor
from tests.pipelines.synthetic import make_dataset


@pytest.fixture
def latents(tmp_path) -> LatentDataset:
    return make_dataset(str(tmp_path / "data"))


def take(data: LatentDataset, count: int, *, cursor: Cursor | None = None, **options) -> list[Batch]:
    options = {"seed": 1, "global_batch_size": 6, **options}
    return list(islice(stream(data, cursor=cursor or Cursor(), **options), count))


def ids(batches: list[Batch]) -> list[list[float]]:
    """Rows are known by their tempo, which numbers them."""
    return [b.cond.tempo_bpm.tolist() for b in batches]


def test_an_epoch_holds_every_row_once(latents: LatentDataset):
    seen = sum(ids(take(latents, 5)), [])
    assert len(seen) == len(set(seen)) == 30


def test_rows_stay_together_with_their_conditions(latents: LatentDataset):
    whole = {float(t): i for i, t in enumerate(read_all(latents).tempo_bpm)}
    raw, info = read_all(latents), latents.info["latents"]
    mean, std = np.array(info["mean"])[:, None], np.array(info["std"])[:, None]
    for batch in take(latents, 5):
        for x0, tempo, key in zip(batch.x0, batch.cond.tempo_bpm, batch.cond.key):
            row = whole[float(tempo)]
            np.testing.assert_allclose(x0, (raw.latents[row] - mean) / std, atol=1e-3)
            assert int(key) == raw.key[row]


def read_all(data: LatentDataset):
    from pipelines.shards import Rows

    return Rows.cat(list(read_here(data.uri, data.shards("train"))))


def test_latents_are_normalised_to_unit_variance(latents: LatentDataset):
    x = torch.cat([b.x0 for b in take(latents, 5)])
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-2)


def test_order_depends_on_seed_and_epoch(latents: LatentDataset):
    first, second = ids(take(latents, 10))[:5], ids(take(latents, 10))[5:]
    assert sorted(sum(first, [])) == sorted(sum(second, []))
    assert first != second
    assert first == ids(take(latents, 5))
    assert first != ids(take(latents, 5, seed=2))


@pytest.mark.parametrize("window_rows", [8192, 12])
def test_resume_replays_exactly_the_next_row(latents: LatentDataset, window_rows: int, monkeypatch):
    monkeypatch.setattr(dataset_module, "WINDOW_ROWS", window_rows)
    whole = take(latents, 12)
    for done in range(1, 11):
        resumed = take(latents, 12 - done, cursor=whole[done - 1].cursor)
        assert ids(resumed) == ids(whole[done:]), f"after batch {done}"


@pytest.mark.parametrize("window_rows", [8192, 12])
def test_workers_share_each_global_batch(latents: LatentDataset, window_rows: int, monkeypatch):
    monkeypatch.setattr(dataset_module, "WINDOW_ROWS", window_rows)
    alone = ids(take(latents, 7))
    shares = [ids(take(latents, 7, rank=r, world_size=3)) for r in range(3)]
    for whole, *parts in zip(alone, *shares):
        assert sorted(whole) == sorted(sum(parts, []))
        assert all(len(p) == 2 for p in parts)


def test_an_incomplete_last_batch_is_left_out_and_the_epoch_ends(latents: LatentDataset):
    batches = take(latents, 4, global_batch_size=8)
    assert [b.cursor for b in batches] == [Cursor(0, 8), Cursor(0, 16), Cursor(1, 0), Cursor(1, 8)]


def test_windows_before_the_cursor_are_not_read(latents: LatentDataset, monkeypatch):
    monkeypatch.setattr(dataset_module, "WINDOW_ROWS", 12)
    read = []

    def counting(uri, shards):
        read.extend(s.file for s in shards)
        yield from read_here(uri, shards)

    take(latents, 1, cursor=Cursor(0, 24), reader=counting)
    assert len(read) == 1


def test_too_little_data_is_refused(latents: LatentDataset):
    with pytest.raises(StoreError, match="30 rows, fewer than one global batch of 64"):
        take(latents, 1, global_batch_size=64)


def test_damaged_shard_is_named(latents: LatentDataset, tmp_path):
    shard = tmp_path / "data" / "shards" / "1.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"1\.parquet is damaged"):
        take(latents, 1)
    shard.unlink()
    with pytest.raises(StoreError, match=r"1\.parquet"):
        take(latents, 1)


def test_data_set_without_manifest_does_not_exist(latents: LatentDataset, tmp_path):
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json does not exist"):
        open_dataset(latents.uri)


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.parametrize("window_rows", [8192, 12])
def test_ray_reads_the_same_rows_from_s3(ray_here, latents: LatentDataset, window_rows: int, monkeypatch):
    monkeypatch.setattr(dataset_module, "WINDOW_ROWS", window_rows)
    remote = make_dataset("s3://latents/dataset-test")
    here, there = take(latents, 7), take(remote, 7, reader=read_with_ray)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.cond.tokens, b.cond.tokens)
        assert a.cursor == b.cursor
