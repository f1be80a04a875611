"""Shards cached on the node's disk are read from storage once, always verified, and never block a run."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from pipelines.data import epoch_plan, shard_cache
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_reader import read_with_ray, read_with_threads
from pipelines.data.shards import FullRows, Shard
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.store import StoreError
from presto_core.config.sections import ClusterConfig
from presto_core.training.state import Batch, Cursor
from tests.support.synthetic_dataset import make_dataset

CONTENT = [bytes([i]) * 1000 for i in range(8)]
SUMS = [Checksum("blake3", blake3(content).hexdigest()) for content in CONTENT]
NAMES = [found.digest for found in SUMS]


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(10**6, str(tmp_path / "cache/shards"))


@pytest.fixture
def uri(object_store, tmp_path: Path) -> str:
    return str(make_dataset(f"s3://latents/{tmp_path.name}").uri)


def files(cache: ShardCache) -> list[str]:
    return sorted(os.listdir(Path(cache.folder))) if Path(cache.folder).is_dir() else []


def test_what_is_kept_is_read_again_and_nothing_else(cache: ShardCache):
    cache.keep(SUMS[0], CONTENT[0])
    assert cache.read(SUMS[0]) == CONTENT[0]
    assert cache.read(SUMS[1]) is None
    assert files(cache) == [NAMES[0]]


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "longer"])
def test_a_damaged_copy_is_not_used_and_goes(cache: ShardCache, damage: str):
    cache.keep(SUMS[0], CONTENT[0])
    path = Path(cache.folder) / NAMES[0]
    kept = path.read_bytes()
    path.write_bytes({"changed": b"x" + kept[1:], "cut": kept[:-1], "empty": b"", "longer": kept + b"x"}[damage])
    assert cache.read(SUMS[0]) is None
    assert files(cache) == []


@pytest.mark.parametrize("digest", ["../precious", "", "A" * 64, "a" * 63, 5, None])
def test_a_manifest_cannot_name_a_file_of_another_folder(tmp_path: Path, digest: object):
    (tmp_path / "precious").write_text("not a shard")
    cache = ShardCache(10**6, str(tmp_path / "shards"))
    shard = Shard("shards/0.parquet", "train", rows=1, sha256="a" * 64)
    with pytest.raises(StoreError, match="64"):
        cache.read(replace(shard, blake3=digest or "", sha256=digest).checksum)  # type: ignore[arg-type]
    assert (tmp_path / "precious").exists()


def test_it_keeps_no_more_than_its_limit(tmp_path: Path):
    cache = ShardCache(3500, str(tmp_path))
    for checksum, content in zip(SUMS, CONTENT):
        cache.keep(checksum, content)
    assert len(files(cache)) == 3


def test_idle_shards_are_deleted_for_new_ones(tmp_path: Path):
    cache = ShardCache(2500, str(tmp_path))
    for checksum, content in zip(SUMS[:2], CONTENT):
        cache.keep(checksum, content)
    long_ago = time.time() - shard_cache.MAX_IDLE_S - 60
    os.utime(Path(cache.folder) / NAMES[0], (long_ago, long_ago))
    shard_cache._open_on_node.cache_clear()  # as in a new process
    cache.keep(SUMS[2], CONTENT[2])
    assert files(cache) == sorted(NAMES[1:3])


def test_an_unwritable_folder_logs_one_warning_and_no_error(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = ShardCache(10**6, str(tmp_path / "file/shards"))
    for checksum, content in zip(SUMS, CONTENT):
        cache.keep(checksum, content)
        assert cache.read(checksum) is None
    assert [r.getMessage().count("cluster.shard_cache_gb=0") for r in caplog.records] == [1]


def test_many_writers_of_one_shard_leave_it_whole(cache: ShardCache):
    content = os.urandom(2**18)
    checksum = Checksum("blake3", blake3(content).hexdigest())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.keep(checksum, content), range(32)))
    assert files(cache) == [checksum.digest]
    assert cache.read(checksum) == content


def test_the_cluster_sets_the_size_and_the_node_the_folder(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PRESTO_CACHE", str(tmp_path / "mine"))
    assert ShardCache.from_config(ClusterConfig(shard_cache_gb=0)) is None
    cache = ShardCache.from_config(ClusterConfig(shard_cache_gb=2))
    assert cache == ShardCache(2 * 10**9)
    shard_cache._open_on_node.cache_clear()
    cache.keep(SUMS[0], CONTENT[0])
    assert os.listdir(tmp_path / "mine/shards") == [NAMES[0]]
    shard_cache._open_on_node.cache_clear()


@pytest.mark.services
def test_later_readings_need_no_storage(uri: str, cache: ShardCache, object_store):
    dataset = open_dataset(uri)
    first = FullRows.concatenate(list(read_with_threads(uri, dataset.shards("train"), FullRows, cache=cache)))
    open_folder(f"{uri}/shards").delete()
    again = FullRows.concatenate(list(read_with_threads(uri, dataset.shards("train"), FullRows, cache=cache)))
    for name in FullRows.columns():
        assert (getattr(first, name) == getattr(again, name)).all() or name == "tempo_bpm"
    shutil.rmtree(Path(cache.folder))
    with pytest.raises(StoreError, match=r"\.parquet"):
        list(read_with_threads(uri, dataset.shards("train"), FullRows, cache=cache))


@pytest.mark.services
@pytest.mark.parametrize(("window_rows", "kept"), [(8, True), (8192, False)], ids=["larger than memory", "small"])
def test_a_stream_is_the_same_with_and_without(uri: str, cache: ShardCache, monkeypatch, window_rows: int, kept: bool):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", window_rows)

    def batches(cache: ShardCache | None) -> list[Batch]:
        found = stream_batches(open_dataset(uri), seed=3, cursor=Cursor(), global_batch_size=4, cache=cache)
        taken = list(islice(found, 20))
        found.close()
        return taken

    for a, b in zip(batches(None), batches(cache), strict=True):
        assert torch.equal(a.x0, b.x0)
        assert a.cursor == b.cursor
    assert bool(files(cache)) == kept


@pytest.mark.services
def test_local_shards_are_not_copied(tmp_path: Path, cache: ShardCache):
    dataset = make_dataset(str(tmp_path / "local"))
    list(read_with_threads(dataset.uri, dataset.shards("train"), FullRows, cache=cache))
    assert files(cache) == []


@pytest.mark.ray
@pytest.mark.services
def test_tasks_of_ray_keep_and_use_them(shared_ray, uri: str, cache: ShardCache):
    dataset = open_dataset(uri)
    list(read_with_ray(uri, dataset.shards("train"), FullRows, cache=cache))
    assert files(cache) == sorted({shard.blake3 for shard in dataset.shards("train")})
    open_folder(f"{uri}/shards").delete()
    assert sum(len(r) for r in read_with_ray(uri, dataset.shards("train"), FullRows, cache=cache)) == sum(
        shard.rows for shard in dataset.shards("train")
    )
