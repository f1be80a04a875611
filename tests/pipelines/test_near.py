"""A copy near the reader: made once whoever asks, whole or not at all, and only of what is far."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.data.dataset import open_dataset
from pipelines.data.shard_reader import read_here
from pipelines.data.shards import Rows
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from pipelines.storage.node_cache import CACHE, near_copy
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.store import StoreError, write_bytes
from presto_core.artifacts.validate import RefusedError
from tests.support.synthetic_dataset import make_dataset

pytestmark = pytest.mark.services


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "near"))
    return tmp_path / "near"


def test_what_is_in_a_folder_stays_there(empty: Path, cache: Path):
    uri = make_dataset(str(empty / "data")).uri
    assert near_copy(uri) == uri
    assert not cache.exists()


def test_all_who_ask_get_the_one_copy_which_reads_as_the_original(object_store: Server, cache: Path):
    far = make_dataset("s3://latents/near/all")
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(near_copy, [far.uri] * 4))
    (place,) = places
    made = {path: path.stat().st_mtime_ns for path in Path(place).rglob("*") if path.is_file()}
    near = open_dataset(place)
    assert near.manifest == far.manifest
    for split in ("train", "held_out"):
        texts = [[list(rows.caption) for rows in read_here(d.uri, d.shards(split), Rows)] for d in (near, far)]
        assert texts[0] == texts[1]
    assert near_copy(far.uri) == place
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert cache.stat().st_mode & 0o077 == 0


def test_half_a_copy_is_made_again(object_store: Server, cache: Path):
    far = make_dataset("s3://latents/near/half")
    place = Path(near_copy(far.uri))
    (place / MANIFEST).unlink()
    (place / "shards/0.parquet").write_bytes(b"half")
    assert near_copy(far.uri) == str(place)
    assert list(read_here(str(place), open_dataset(str(place)).shards("train"), Rows))


def test_what_is_damaged_is_left_to_its_reader(object_store: Server, cache: Path):
    far = make_dataset("s3://latents/near/damaged")
    write_bytes(open_folder(far.uri), "shards/1.parquet", b"nothing")
    assert near_copy(far.uri) == far.uri


def test_a_cache_that_cannot_be_is_refused(object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "near"))
    with pytest.raises(StoreError, match=r"copies cannot be kept in .*set PRESTO_CACHE"):
        near_copy(make_dataset("s3://latents/near/refused").uri)


@pytest.mark.parametrize("where", ["id", "shard"])
def test_a_manifest_that_leads_out_of_the_cache_is_refused(object_store: Server, cache: Path, where: str):
    far = make_dataset(f"s3://latents/near/hostile-{where}")
    manifest = json.loads(json.dumps(far.manifest))
    if where == "id":
        manifest["id"] = "../outside"
    else:
        manifest["dataset"]["shards"][0]["file"] = "../../outside.parquet"
    write_bytes(open_folder(far.uri), MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(RefusedError):
        near_copy(far.uri)
    assert not list(cache.parent.glob("outside*"))
    assert not cache.exists()
