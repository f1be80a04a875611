"""Ingest and the training stream through a proxy that breaks connections: exact bytes, or one clear message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import soundfile
import torch

from pipelines.data import epoch_plan
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.data.shard_reader import read_with_threads
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from presto_core.training.state import Cursor
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.support.music import RATE_HZ, notes
from tests.support.synthetic_dataset import make_dataset

PRESTO = str(Path(sys.executable).parent / "presto")
pytestmark = pytest.mark.services


def mix_faults(proxy: FaultProxy) -> None:
    """Break a tenth of all requests, with every kind of fault."""
    for fault in (Fault.REFUSE, Fault.RESET, Fault.TRUNCATE, Fault.SLOW_DOWN):
        proxy.plan(fault, probability=0.02, after_bytes=500)
    for fault in (Fault.SHORT, Fault.ALTER):
        proxy.plan(fault, probability=0.01, after_bytes=500, path=".parquet")
    proxy.plan(Fault.STALL, times=1, seconds=3, probability=0.02)


# over 10 s: a stall of 3 s, and pauses before what broke is tried again
def test_the_stream_gives_the_same_batches_through_a_bad_network(
    object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    data = make_dataset(f"s3://latents/{tmp_path.name}", shard_rows=(10,) * 24)

    def batches(count: int) -> list[torch.Tensor]:
        found = stream_batches(data, seed=0, cursor=Cursor(), global_batch_size=6, reader=read_with_threads)
        return [batch.x0 for batch in islice(found, count)]

    direct = batches(80)
    with FaultProxy(object_store.endpoint, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        mix_faults(proxy)
        through = batches(80)  # two epochs
        assert sum(proxy.injected.values()) >= 5, proxy.injected
    assert all(torch.equal(a, b) for a, b in zip(direct, through, strict=True))


# over 10 s: reads are tried again, after growing pauses, until they are given up
@pytest.mark.slow
def test_a_store_that_goes_away_under_the_stream_is_named(
    object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    data = make_dataset(f"s3://latents/{tmp_path.name}", shard_rows=(10,) * 24)
    with FaultProxy(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        found = stream_batches(data, seed=0, cursor=Cursor(), global_batch_size=6)
        last = next(found).cursor
        with proxy.down(), pytest.raises(StoreError, match=r"shards/\d+\.parquet") as caught:
            last = [batch.cursor for batch in found][-1]
        assert "\n" not in str(caught.value)
        assert last.row < 240
        again = stream_batches(data, seed=0, cursor=last, global_batch_size=6)  # with the store back, it resumes
        assert next(again).cursor.row == last.row + 6


@pytest.fixture
def music(tmp_path: Path, object_store: Server) -> str:
    """A source on S3."""
    folder = open_folder(f"s3://latents/{tmp_path.name}/music")
    for i in range(10):
        soundfile.write(tmp_path / "x.flac", notes(20, seed=i), RATE_HZ)
        write_bytes(folder, f"{i}.flac", (tmp_path / "x.flac").read_bytes())
    return folder.uri


def ingest(music: str, root: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    cwd.mkdir(exist_ok=True)
    settings = ("ingest.chunk_frames=8", "ingest.rows_per_shard=16", f"ingest.source={music}", f"storage.root={root}")
    mine = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [PRESTO, "ingest", *settings, "cluster.data_workers=2"]
    return subprocess.Popen(
        command, cwd=cwd, env=mine | env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def shards_of(root: str) -> dict[str, bytes]:
    (name,) = open_folder(f"{root}/artifacts").list_folders()
    folder = open_folder(f"{root}/artifacts/{name}")
    shards = open_dataset(folder.uri).info["shards"]
    return {shard["file"]: read_bytes(folder, shard["file"]) for shard in shards} | {"id": name.encode()}


@pytest.mark.ray
@pytest.mark.slow
def test_ingest_through_a_bad_network_and_an_outage_makes_the_same_data_set(
    object_store: Server, music: str, tmp_path: Path
):
    """Run undisturbed, then with a tenth of the requests broken and an outage, then resume the latter."""
    base = f"s3://latents/{tmp_path.name}"
    calm = ingest(music, f"{base}/calm", tmp_path / "calm")
    assert calm.wait(300) == 0, calm.stderr and calm.stderr.read()
    with FaultProxy(object_store.endpoint, seed=1) as proxy:
        mix_faults(proxy)
        rough = ingest(music, f"{base}/rough", tmp_path / "rough", AWS_ENDPOINT_URL=proxy.endpoint)
        encoded = open_folder(f"{base}/rough/encoded")
        outage = threading.Event()
        while rough.poll() is None and not outage.is_set():
            if encoded.list_files(recursive=True, missing_ok=True):
                outage.set()
            time.sleep(0.2)
        with proxy.down():
            stderr = rough.communicate(timeout=300)[1]
        assert rough.returncode == 1, stderr
        assert [line for line in stderr.splitlines() if line.startswith("presto: ")] == stderr.splitlines()[-1:]
        assert "Traceback" not in stderr
        assert open_folder(f"{base}/rough/artifacts").list_folders() == []
        again = ingest(music, f"{base}/rough", tmp_path / "rough", AWS_ENDPOINT_URL=proxy.endpoint)
        stderr = again.communicate(timeout=300)[1]
        assert again.returncode == 0, stderr
        assert sum(proxy.injected.values()) >= 10, proxy.injected
    assert shards_of(f"{base}/rough") == shards_of(f"{base}/calm")
    assert "0 bad files" in stderr
    shutil.rmtree(tmp_path / "calm")
