"""The node cache copies remote artifacts only, once per node, and atomically."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.data.dataset import open_dataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from pipelines.storage.node_cache import CACHE_VAR, cache_on_node
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.store import StoreError, write_bytes
from presto_core.artifacts.validate import UnsafeArtifactError
from tests.support.synthetic_dataset import make_dataset

pytestmark = pytest.mark.services


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VAR, str(tmp_path / "near"))
    return tmp_path / "near"


def test_what_is_in_a_folder_stays_there(empty: Path, cache: Path):
    uri = make_dataset(str(empty / "data")).uri
    assert cache_on_node(uri) == uri
    assert not cache.exists()


def test_all_callers_get_the_one_copy_which_reads_as_the_original(object_store: Server, cache: Path):
    remote = make_dataset("s3://latents/near/all")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(cache_on_node, [remote.uri] * 4))
    (copy_path,) = paths
    made = {path: path.stat().st_mtime_ns for path in Path(copy_path).rglob("*") if path.is_file()}
    cached = open_dataset(copy_path)
    assert cached.manifest == remote.manifest
    for split in ("train", "validation", "test"):
        texts = [
            [list(rows.caption) for rows in read_with_threads(d.uri, d.shards(split), FullRows)]
            for d in (cached, remote)
        ]
        assert texts[0] == texts[1]
    assert cache_on_node(remote.uri) == copy_path
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert cache.stat().st_mode & 0o077 == 0


def test_half_a_copy_is_made_again(object_store: Server, cache: Path):
    remote = make_dataset("s3://latents/near/half")
    copy_path = Path(cache_on_node(remote.uri))
    (copy_path / MANIFEST).unlink()
    (copy_path / "shards/0.parquet").write_bytes(b"half")
    assert cache_on_node(remote.uri) == str(copy_path)
    assert list(read_with_threads(str(copy_path), open_dataset(str(copy_path)).shards("train"), FullRows))


def test_what_is_damaged_is_left_to_its_reader(object_store: Server, cache: Path):
    remote = make_dataset("s3://latents/near/damaged")
    write_bytes(open_folder(remote.uri), "shards/1.parquet", b"nothing")
    assert cache_on_node(remote.uri) == remote.uri


def test_a_cache_that_cannot_be_is_refused(object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VAR, str(tmp_path / "file" / "near"))
    with pytest.raises(StoreError, match=r"file/near.*PRESTO_CACHE"):
        cache_on_node(make_dataset("s3://latents/near/refused").uri)


@pytest.mark.parametrize("where", ["id", "shard"])
def test_a_manifest_that_leads_out_of_the_cache_is_refused(object_store: Server, cache: Path, where: str):
    remote = make_dataset(f"s3://latents/near/hostile-{where}")
    manifest = json.loads(json.dumps(remote.manifest))
    if where == "id":
        manifest["id"] = "../outside"
    else:
        manifest["dataset"]["shards"][0]["file"] = "../../outside.parquet"
    write_bytes(open_folder(remote.uri), MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(UnsafeArtifactError):
        cache_on_node(remote.uri)
    assert not list(cache.parent.glob("outside*"))
    assert not cache.exists()
