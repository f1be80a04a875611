"""kill -9 of a command that reads the training stream, or of its readers: it resumes with the next row."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from pipelines.data import epoch_plan
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.storage.local_s3 import Server
from presto_core.training.state import Cursor
from tests.support.processes import PATIENCE_S, Attempt, title_of, wait_for
from tests.support.synthetic_dataset import make_dataset

SEEDS = 20
READERS, IDLE = "_read_item", "IDLE"
pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(3000)]


STREAM = """
import hashlib, json, os, sys, time
from pathlib import Path

import torch

from pipelines.cluster.session import ray_session
from pipelines.data import epoch_plan, shard_reader
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.storage.local_s3 import Server
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError
from presto_core.training.state import Cursor

uri, log, total, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
epoch_plan.WINDOW_ROWS, shard_reader.SHARDS_PER_EXECUTION = 120, 8
log.touch()
kept = log.read_bytes().rpartition(b"\\n")[0]
lines = kept.splitlines()
cursor = Cursor(*json.loads(lines[-1])["cursor"]) if lines else Cursor()
try:
    with ray_session(ClusterConfig(cpus=2, object_store_mb=200), cpus=1), log.open("r+b") as out:
        out.truncate(len(kept) + bool(kept))
        out.seek(0, 2)
        settings = {"seed": 5, "cursor": cursor, "global_batch_size": 12, "world_size": ranks, "crop_frames": 6}
        data, read = open_dataset(uri), shard_reader.read_with_ray
        streams = [stream_batches(data, rank=rank, reader=read, **settings) for rank in range(ranks)]
        for _ in range(len(lines), total):
            parts = [next(s) for s in streams]
            x0 = torch.cat([part.x0 for part in parts])
            tempi = torch.cat([part.cond.tempo_bpm for part in parts])
            after = parts[0].cursor
            row = {"rows": tempi.int().tolist(), "x0": hashlib.sha256(x0.numpy().tobytes()).hexdigest()}
            out.write(json.dumps(row | {"cursor": [after.epoch, after.row]}).encode() + b"\\n")
            out.flush()
            os.fsync(out.fileno())
            time.sleep(0.01)
        for s in streams:
            s.close()  # while Ray runs: prefetching would start it again
except UserError as error:
    sys.exit(f"presto: {error}")
"""


@pytest.fixture(scope="module")
def latents(object_store: Server) -> str:
    """Sixty shards on S3, with rows numbered by their tempi."""
    return make_dataset("s3://latents/kills/stream", shard_rows=(30,) * 60).uri


def read_undisturbed(uri: str, total: int) -> list[dict[str, object]]:
    """Return the expected log of a run: the same stream, read in this process without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "WINDOW_ROWS", 120)
        batches = islice(
            stream_batches(open_dataset(uri), seed=5, cursor=Cursor(), global_batch_size=12, crop_frames=6), total
        )
        return [
            {
                "rows": batch.cond.tempo_bpm.int().tolist(),
                "x0": hashlib.sha256(batch.x0.numpy().tobytes()).hexdigest(),
                "cursor": [batch.cursor.epoch, batch.cursor.row],
            }
            for batch in batches
        ]


@dataclass
class StreamRun:
    """A command that reads the stream and logs each batch, restarted as often as necessary."""

    begin: Callable[[list[str], Path], Attempt]
    uri: str
    cwd: Path
    total: int
    attempt: Attempt | None = None
    exits: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.cwd / "batches.jsonl"

    def read_log(self) -> list[bytes]:
        return self.log.read_bytes().split(b"\n")[:-1] if self.log.exists() else []

    def has_logged_or_ended(self, attempt: Attempt, count: int) -> bool:
        return not attempt.is_running or len(self.read_log()) >= count

    def start(self, ranks: int) -> Attempt:
        args = [self.uri, str(self.log), str(self.total), str(ranks)]
        self.attempt = self.begin([sys.executable, "-c", STREAM, *args], self.cwd)
        return self.attempt

    def strike(self, victim: str, *, after: int, ranks: int) -> str:
        """Kill the driver or a reader after `after` logged batches; return what was killed, or an empty string."""
        while len(self.read_log()) < self.total:
            attempt = self.attempt if self.attempt and self.attempt.is_running else None
            if attempt is None:
                self.exits += [self.attempt.process.returncode] if self.attempt else []
                if self.attempt and self.exits[-1] != -signal.SIGKILL:
                    self.attempt.exit_code()
                attempt = self.start(ranks)
            wait_for(partial(self.has_logged_or_ended, attempt, after), PATIENCE_S)
            if victim == "driver" and attempt.is_running:
                attempt.kill()
                attempt.end()
                return victim
            if victim == "reader" and (killed := kill_reader(attempt)):
                return killed
        return ""

    def finish(self, ranks: int) -> None:
        if self.attempt is None or self.attempt.process.poll() == -signal.SIGKILL or self.attempt.exit_code():
            assert self.start(ranks).exit_code() == 0, self.attempt and self.attempt.stderr


def kill_reader(attempt: Attempt) -> str:
    """kill -9 a Ray worker while it reads a shard; an idle one if none is found within some seconds."""
    until = time.monotonic() + 10
    while attempt.is_running:
        workers = attempt.workers(READERS, IDLE)
        for _ in range(200):  # a read takes milliseconds, so poll often, and only these
            for worker, _title in workers:
                now = title_of(worker)
                if READERS in now or (IDLE in now and time.monotonic() > until):
                    worker.kill()
                    return "reader" if READERS in now else "idle worker"
    return ""


def test_the_stream_is_killed_and_resumes_with_the_next_row(begin, latents: str, tmp_path: Path):
    listener = StreamRun(begin, latents, tmp_path / "stream", total=200)
    assert listener.strike("reader", after=20, ranks=1)
    assert listener.strike("driver", after=90, ranks=1) == "driver"
    assert 90 <= len(listener.read_log()) < 200
    listener.finish(ranks=2)
    assert list(map(json.loads, listener.read_log())) == read_undisturbed(latents, 200)


def test_the_stream_survives_kills_at_random_moments_on_changing_numbers_of_workers(
    begin, latents: str, tmp_path: Path
):
    rng, hits = random.Random(7), []
    listener = StreamRun(begin, latents, tmp_path / "stream", total=900)  # six epochs
    for seed in range(SEEDS):
        victim = "driver" if seed % 3 == 2 else "reader"
        after, ranks = int((seed + rng.random()) / (SEEDS + 1) * listener.total), rng.choice((1, 2, 3, 4))
        hits.append(listener.strike(victim, after=after, ranks=ranks))
    listener.finish(ranks=6)
    assert list(map(json.loads, listener.read_log())) == read_undisturbed(latents, listener.total)
    print(hits)
    assert hits.count("driver") == SEEDS // 3
    assert hits.count("reader") >= SEEDS // 3  # while they read
    assert all(hits)
