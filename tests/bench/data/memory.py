"""Whether memory stays what it is when the data grow: peaks of a trainer's process and of its Ray processes.

As a program, the trainer's side: `python -m tests.bench.data.memory <batches>`, told the data set's URI.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from threading import Event, Thread

import psutil

from pipelines.cluster.session import ray_session, training_cpus
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.data.epoch_plan import WINDOW_ROWS
from pipelines.data.shard_reader import read_with_ray
from pipelines.data.shards import to_parquet
from presto_core.config.sections import ClusterConfig
from presto_core.training.state import Cursor
from tests.bench.data import made_up
from tests.bench.data.child import Child, reply
from tests.bench.data.finding import Finding

ROWS_PER_SHARD = 512
SMALL_SHARDS = 2 * WINDOW_ROWS // ROWS_PER_SHARD + 4
OBJECT_STORE_MB = 100  # Ray Data reads ahead into about half of it: the small set must be larger than that, too
TIMES = 20
BATCH = 32
PAUSE_S = 5.0  # after the first batch: time for readers to run ahead as far as they may
LOOK_S = 0.3
WANTED = 1.1


def measure(root: str) -> tuple[list[Finding], list[str]]:
    """The same number of batches of a data set and of one 20 times as large."""
    small, large = f"{root}/small", f"{root}/large"
    batches = TIMES * SMALL_SHARDS * ROWS_PER_SHARD // BATCH
    write(small, times=1)
    write(large, times=TIMES)
    peaks = {uri: _peaks(uri, batches) for uri in (small, large)}
    megabytes = SMALL_SHARDS * ROWS_PER_SHARD * made_up.NARROW.row_bytes / 1e6
    against = f"{megabytes:.0f} MB of data"
    findings = [
        Finding(f"{what}, {TIMES} x the data", large_mb, "MB", against, small_mb, wanted=WANTED, bound="at most")
        for what, small_mb, large_mb in (
            ("trainer's peak RSS", peaks[small].trainer_mb, peaks[large].trainer_mb),
            ("its Ray processes' peak", peaks[small].ray_mb, peaks[large].ray_mb),
        )
    ]
    note = (
        f"memory: {batches} batches each, so {TIMES} epochs of the small set, which is larger than a shuffle window "
        f"({WINDOW_ROWS} rows). Ray's processes share memory: each page counts once (PSS)"
    )
    return findings, [note]


def write(uri: str, *, times: int) -> None:
    """A data set of a few shards, each stored `times` over: for memory, other bytes would change nothing."""
    copy = made_up.ParquetCopy(uri, made_up.NARROW)
    for seed in range(SMALL_SHARDS):
        rows = made_up.rows_of(made_up.NARROW, seed, ROWS_PER_SHARD)
        content = to_parquet(rows)
        for _ in range(times):
            copy.add_bytes(content, len(rows))
    copy.close()


@dataclass
class Peaks:
    """Largest seen so far."""

    trainer_mb: float = 0.0
    ray_mb: float = 0.0

    def sample(self, pid: int) -> None:
        trainer = psutil.Process(pid)
        self.trainer_mb = max(self.trainer_mb, trainer.memory_info().rss / 1e6)
        self.ray_mb = max(self.ray_mb, sum(_pss_mb(process) for process in trainer.children(recursive=True)))


def _peaks(uri: str, batches: int) -> Peaks:
    peaks, done = Peaks(), Event()
    with Child("memory", str(batches)) as child:

        def watch() -> None:
            while not done.wait(LOOK_S):
                peaks.sample(child.process.pid)

        watching = Thread(target=watch)
        watching.start()
        try:
            child.ask(uri)
        finally:
            done.set()
            watching.join()
    return peaks


def _pss_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss / 1e6)
    except psutil.Error:  # it has just ended
        return 0.0


def main() -> None:
    count, cluster = int(sys.argv[1]), ClusterConfig(object_store_mb=OBJECT_STORE_MB)
    uri = json.loads(sys.stdin.readline())
    with ray_session(cluster, cpus=training_cpus(cluster)):
        batches = stream_batches(
            open_dataset(uri), seed=0, cursor=Cursor(), global_batch_size=BATCH, reader=read_with_ray
        )
        next(batches)
        time.sleep(PAUSE_S)
        for _ in range(count - 1):
            next(batches)
        reply("done")
        batches.close()


if __name__ == "__main__":
    main()
