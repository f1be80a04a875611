"""kill -9, at any moment, of a command or of one of its Ray workers: the same command again makes the same bytes.

Real processes on real stores. Those marked `slow` (`make test-slow`) kill ingest, and both over twenty seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import psutil
import pytest
import soundfile

from pipelines import epoch_plan
from pipelines.dataset import open_dataset, stream
from pipelines.embedded_s3 import Server
from pipelines.storage import open_folder
from presto_core.registry.store import read_bytes
from presto_core.training.state import Cursor
from tests.pipelines.music import RATE_HZ, notes, write_awkward_but_good, write_bad, write_music
from tests.pipelines.synthetic import make_dataset

PRESTO = str(Path(sys.executable).parent / "presto")
SEEDS = 20
PATIENCE_S = 400  # for what takes some twenty seconds on a quiet machine
ACTORS, READERS, IDLE = "ray::MapWorker(Map(_Guarded))", "_read_item", "IDLE"
S3_ROOT = "s3://latents/kills/store"  # the same for all runs: it is written into the data set's config.yaml
pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(3000)]


class Life:
    """One life of a command: a process in a session of its own, and all the processes it starts."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        mine = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        self.log = cwd / f"life-{time.time_ns()}.log"
        with self.log.open("wb") as stderr, self.log.with_suffix(".out").open("wb") as stdout:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=mine | {"HOME": str(cwd), "OMP_NUM_THREADS": "1"},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = {psutil.Process(self.process.pid)}

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def goes_on(self) -> bool:
        return self.process.poll() is None

    def look(self) -> None:
        """Remember every process that came of this command, so that none is left when it is dead."""
        for member in list(self.family):
            try:
                self.family |= set(member.children(recursive=True))
            except psutil.Error:
                continue

    def workers(self, *titles: str) -> list[tuple[psutil.Process, str]]:
        """Ray workers that do one of these things now, and what it is."""
        self.look()
        found = [(member, title_of(member)) for member in self.family]
        return [(worker, title) for worker, title in found if any(t in title for t in titles)]

    def kill(self) -> None:
        """kill -9 of the driver; what it leaves behind is left to itself, until `end`."""
        self.look()
        assert self.goes_on
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL

    def end(self, patience_s: float = 30.0) -> None:
        """Make sure that no process of this life is left; Ray's agents do not end by themselves, all others do."""
        self.look()
        wait_for(lambda: not any(lives(m) and "Agent" not in title_of(m) for m in self.family), patience_s, step_s=0.1)
        for member in filter(lives, self.family):
            member.kill()
        assert wait_for(lambda: not any(map(lives, self.family)), 60)

    def exit_code(self) -> int:
        """Wait for the end. A failing one must be a sentence that a user can act upon."""
        code = self.process.wait(PATIENCE_S)
        self.end()
        if code:
            assert code == 1, self.said
            assert [s for s in self.said.splitlines() if s.startswith("presto: ")] == self.said.splitlines()[-1:]
            assert "Traceback" not in self.said
            assert "bug" not in self.said
        return code


def lives(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def title_of(member: psutil.Process) -> str:
    try:
        return " ".join(member.cmdline()).strip() if lives(member) else ""
    except psutil.Error:
        return ""


def wait_for(happened: Callable[[], object], seconds: float, *, step_s: float = 0.02) -> bool:
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(step_s)
    return True


@pytest.fixture
def begin() -> Iterator[Callable[[list[str], Path], Life]]:
    """Start lives; none outlasts its test."""
    begun: list[Life] = []

    def start(command: list[str], cwd: Path) -> Life:
        cwd.mkdir(exist_ok=True)
        begun.append(Life(command, cwd))
        return begun[-1]

    yield start
    for life in begun:
        life.look()
        life.end(patience_s=0)


# ---- ingest


@dataclass(frozen=True)
class Place:
    """A source and the store that it is ingested into."""

    music: Path
    cwd: Path
    on_s3: bool = False
    rows_per_shard: int = 16

    @property
    def root(self) -> str:
        return S3_ROOT if self.on_s3 else str(self.cwd / "store")

    @property
    def command(self) -> list[str]:
        settings = {"source": self.music, "chunk_frames": 8, "rows_per_shard": self.rows_per_shard}
        settings |= {"max_bad_fraction": 0.5, "held_out_fraction": 0.3}
        words = [f"ingest.{name}={value}" for name, value in settings.items()]
        words += ["cluster.cpus=2", "cluster.data_workers=2", "text.max_tokens=8"]
        return [PRESTO, "ingest", *words, f"storage.root={S3_ROOT if self.on_s3 else 'store'}"]

    def stored(self) -> list[str]:
        """Encoded segments and shards that are there."""
        found = []
        for part in ("encoded", "artifacts"):
            infos = open_folder(self.root).child(part).files(recursive=True, missing_ok=True)
            found += [info.path for info in infos if info.path.endswith(".parquet")]
        return [path for path in found if "/latents/" in path or "/shards/" in path]

    def contents(self) -> dict[str, bytes]:
        """Every byte of the one data set there is, but when and with what it was made."""
        artifacts = open_folder(self.root).child("artifacts")
        (name,) = artifacts.folders()
        folder = artifacts.child(name)
        files = [info.path.removeprefix(f"{folder.path}/") for info in folder.files(recursive=True)]
        made = {file: read_bytes(folder, file) for file in files}
        manifest = json.loads(made.pop("manifest.json"))
        made["manifest"] = json.dumps({k: v for k, v in manifest.items() if k not in ("created", "made_with")}).encode()
        assert not open_folder(self.root).child("runs").child(name).files(recursive=True, missing_ok=True)
        return made


@dataclass
class Calm:
    """An undisturbed run: what it made, how long it took, and when how much of it was stored."""

    contents: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    stored: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    @staticmethod
    def of(place: Place, life: Life) -> Calm:
        calm, began = Calm(), time.monotonic()
        while life.goes_on:
            if len(place.stored()) > calm.stored[-1][1]:
                calm.stored.append((time.monotonic() - began, len(place.stored())))
            time.sleep(0.05)
        calm.seconds = time.monotonic() - began
        assert life.exit_code() == 0, life.said
        calm.contents = place.contents()
        return calm

    def moment(self, share: float) -> tuple[int, float]:
        """How much is stored when a share of the run has passed, and for how long: whatever else the machine does."""
        came, count = max(s for s in self.stored if s[0] <= share * self.seconds)
        return count, share * self.seconds - came


@dataclass(frozen=True)
class Kill:
    """What was killed, and in which phase: `start` (nothing is encoded), `encode`, `shards`, ..."""

    victim: str
    phase: str


def phase_of(life: Life, place: Place) -> str:
    said = life.said
    if "ingest: run " in said:
        return "shards" if "ingest: presto-dataset version" not in said else "end"
    if "x real time" in said:
        return "between"
    return "encode" if any("/latents/" in path for path in place.stored()) else "start"


def strike(life: Life, place: Place, calm: Calm, share: float, victim: str, rng: random.Random) -> Kill | None:
    """Kill the driver or a worker when a share of the run has passed; None where it ended before."""
    count, later_s = calm.moment(share)
    wait_for(lambda: not life.goes_on or len(place.stored()) >= count, PATIENCE_S)
    wait_for(lambda: not life.goes_on, later_s)
    while life.goes_on:
        phase = phase_of(life, place)
        if victim == "driver":
            life.kill()
            if rng.random() < 0.5:  # else the next life meets what this one left behind
                life.end()
            return Kill("driver", phase)
        for worker, title in rng.sample(found := life.workers(ACTORS), len(found)):
            if title == title_of(worker):
                worker.kill()
                return Kill("actor", phase)
        time.sleep(0.02)
    return None


def survive(begin, place: Place, calm: Calm, kills: list[tuple[str, float]], rng: random.Random) -> list[Kill]:
    """Ingest under a series of kills, and again until it is done; the data set must be the undisturbed run's."""
    life, hits = begin(place.command, place.cwd), []
    for victim, share in kills:
        if not life.goes_on:
            if life.process.returncode != -signal.SIGKILL and life.exit_code() == 0:
                break  # done, and nothing left to kill
            life = begin(place.command, place.cwd)
        hits += filter(None, [strike(life, place, calm, share, victim, rng)])
    if life.process.poll() == -signal.SIGKILL or life.exit_code():
        life = begin(place.command, place.cwd)
        assert life.exit_code() == 0, life.said
    assert "presto-dataset version 1 = " in life.said
    made = place.contents()
    assert made.keys() == calm.contents.keys()
    assert [file for file in made if made[file] != calm.contents[file]] == []
    return hits


@pytest.mark.slow
def test_ingest_is_killed_and_makes_the_same_data_set(begin, tmp_path: Path):
    """One kill of a worker while it encodes, then one of the driver among the shards."""
    write_music(tmp_path / "music")
    calm_place, place = (Place(tmp_path / "music", tmp_path / name, rows_per_shard=2) for name in ("calm", "killed"))
    calm = Calm.of(calm_place, begin(calm_place.command, calm_place.cwd))
    segments = sum("/latents/" in path for path in calm_place.stored())
    first_shard = next(came for came, count in calm.stored if count > segments) / calm.seconds
    kills = [("worker", 0.0), ("driver", first_shard + 1e-9)]
    worker, driver = survive(begin, place, calm, kills, random.Random(0))
    assert worker.victim != "driver"
    assert driver == Kill("driver", "shards")


@dataclass(frozen=True)
class Studio:
    """A source of many files, and the undisturbed data set of it in each kind of store."""

    folder: Path
    calm: dict[bool, Calm]

    def place(self, name: str, *, on_s3: bool) -> Place:
        if on_s3:
            open_folder(S3_ROOT).delete()
        return Place(self.folder / "music", self.folder / name, on_s3)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, object_store: Server) -> Studio:
    """Twenty minutes of music in 35 files: short ones, odd ones, bad ones, and long ones of several segments."""
    folder = tmp_path_factory.mktemp("kills")
    write_music(folder / "music")
    write_awkward_but_good(folder / "music/odd")
    write_bad(folder / "music/bad")
    for i in range(8):
        soundfile.write(folder / f"music/long {i}.flac", notes(160 + 80 * i, seed=100 + i), RATE_HZ)
    return Studio(folder, {})


def planned(seed: int, attempt: int, rng: random.Random) -> list[tuple[str, float]]:
    """One to three kills. The first ones of all seeds are spread evenly over a run, for drivers and for workers."""
    first = ("driver" if seed % 2 else "worker", (seed // 2 + rng.random()) / (SEEDS / 2) * 0.9**attempt)
    return [first, *((rng.choice(("driver", "worker")), rng.random()) for _ in range(rng.choice((0, 0, 1, 2))))]


RECORD: dict[int, list[Kill]] = {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_ingest_survives_kills_at_random_moments(begin, studio: Studio, seed: int):
    on_s3, rng = seed % 5 == 4, random.Random(seed)
    if on_s3 not in studio.calm:
        place = studio.place(f"calm {on_s3}", on_s3=on_s3)
        studio.calm[on_s3] = Calm.of(place, begin(place.command, place.cwd))
    for attempt in range(6):  # a kill near the end may come too late
        place = studio.place(f"killed {seed} {attempt}", on_s3=on_s3)
        RECORD[seed] = survive(begin, place, studio.calm[on_s3], planned(seed, attempt, rng), rng)
        if RECORD[seed]:
            break
    print(f"seed {seed}: {RECORD[seed]}")
    assert RECORD[seed]


@pytest.mark.slow
def test_the_kills_hit_every_phase_in_drivers_and_in_workers():
    if len(RECORD) < SEEDS:
        pytest.skip("needs the kills of all seeds")
    hit = {(kill.victim, kill.phase) for kills in RECORD.values() for kill in kills}
    assert {(victim, phase) for victim in ("driver", "actor") for phase in ("encode", "shards")} <= hit


# ---- the training stream

STREAM = """
import hashlib, json, os, sys, time
from pathlib import Path

import torch

from pipelines import epoch_plan, reading
from pipelines.cluster import ray_session
from pipelines.dataset import open_dataset, stream
from presto_core.config.errors import UserError
from presto_core.config.sections import ClusterConfig
from presto_core.training.state import Cursor

uri, log, total, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
epoch_plan.WINDOW_ROWS, reading.SHARDS_A_PLAN = 120, 8
log.touch()
kept = log.read_bytes().rpartition(b"\\n")[0]
lines = kept.splitlines()
cursor = Cursor(*json.loads(lines[-1])["cursor"]) if lines else Cursor()
try:
    with ray_session(ClusterConfig(cpus=2, object_store_mb=200), cpus=1), log.open("r+b") as out:
        out.truncate(len(kept) + bool(kept))
        out.seek(0, 2)
        settings = {"seed": 5, "cursor": cursor, "global_batch_size": 12, "world_size": ranks, "crop_frames": 6}
        data, read = open_dataset(uri), reading.read_with_ray
        streams = [stream(data, rank=rank, reader=read, **settings) for rank in range(ranks)]
        for _ in range(len(lines), total):
            parts = [next(s) for s in streams]
            x0 = torch.cat([part.x0 for part in parts])
            tempi = torch.cat([part.cond.tempo_bpm for part in parts])
            after = parts[0].cursor
            told = {"rows": tempi.int().tolist(), "x0": hashlib.sha256(x0.numpy().tobytes()).hexdigest()}
            out.write(json.dumps(told | {"cursor": [after.epoch, after.row]}).encode() + b"\\n")
            out.flush()
            os.fsync(out.fileno())
            time.sleep(0.01)
except UserError as error:
    sys.exit(f"presto: {error}")
"""


@pytest.fixture(scope="module")
def latents(object_store: Server) -> str:
    """Sixty shards on S3, whose rows are numbered by their tempi."""
    return make_dataset("s3://latents/kills/stream", shard_rows=(30,) * 60).uri


def undisturbed(uri: str, total: int) -> list[dict[str, object]]:
    """What the log of a run must hold: the same stream read in this process, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "WINDOW_ROWS", 120)
        batches = islice(stream(open_dataset(uri), seed=5, cursor=Cursor(), global_batch_size=12, crop_frames=6), total)
        return [
            {
                "rows": batch.cond.tempo_bpm.int().tolist(),
                "x0": hashlib.sha256(batch.x0.numpy().tobytes()).hexdigest(),
                "cursor": [batch.cursor.epoch, batch.cursor.row],
            }
            for batch in batches
        ]


@dataclass
class Listener:
    """A command that goes through the stream and keeps each batch in a log, started again as often as it takes."""

    begin: Callable[[list[str], Path], Life]
    uri: str
    cwd: Path
    total: int
    life: Life | None = None
    exits: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.cwd / "batches.jsonl"

    def kept(self) -> list[bytes]:
        return self.log.read_bytes().split(b"\n")[:-1] if self.log.exists() else []

    def start(self, ranks: int) -> Life:
        words = [self.uri, str(self.log), str(self.total), str(ranks)]
        self.life = self.begin([sys.executable, "-c", STREAM, *words], self.cwd)
        return self.life

    def strike(self, victim: str, *, after: int, ranks: int) -> str:
        """Kill the driver or a reader once so many batches are kept; what was killed, or nothing."""
        while len(self.kept()) < self.total:
            life = self.life if self.life and self.life.goes_on else None
            if life is None:
                self.exits += [self.life.process.returncode] if self.life else []
                if self.life and self.exits[-1] != -signal.SIGKILL:
                    self.life.exit_code()
                life = self.start(ranks)
            wait_for(lambda now=life: not now.goes_on or len(self.kept()) >= after, PATIENCE_S)
            if victim == "driver" and life.goes_on:
                life.kill()
                life.end()
                return victim
            if victim == "reader" and (killed := kill_reader(life)):
                return killed
        return ""

    def finish(self, ranks: int) -> None:
        if self.life is None or self.life.process.poll() == -signal.SIGKILL or self.life.exit_code():
            assert self.start(ranks).exit_code() == 0, self.life and self.life.said


def kill_reader(life: Life) -> str:
    """kill -9 of a Ray worker while it reads a shard; of an idle one where none is met within some seconds."""
    until = time.monotonic() + 10
    while life.goes_on:
        workers = life.workers(READERS, IDLE)
        for _ in range(200):  # a read takes milliseconds: look often, and only at these
            for worker, _title in workers:
                now = title_of(worker)
                if READERS in now or (IDLE in now and time.monotonic() > until):
                    worker.kill()
                    return "reader" if READERS in now else "idle worker"
    return ""


def test_the_stream_is_killed_and_goes_on_with_the_next_row(begin, latents: str, tmp_path: Path):
    listener = Listener(begin, latents, tmp_path / "stream", total=200)
    assert listener.strike("reader", after=20, ranks=1)
    assert listener.strike("driver", after=90, ranks=1) == "driver"
    assert 90 <= len(listener.kept()) < 200
    listener.finish(ranks=2)
    assert list(map(json.loads, listener.kept())) == undisturbed(latents, 200)


@pytest.mark.slow
def test_the_stream_survives_kills_at_random_moments_on_changing_numbers_of_workers(
    begin, latents: str, tmp_path: Path
):
    rng, hits = random.Random(7), []
    listener = Listener(begin, latents, tmp_path / "stream", total=900)  # six epochs
    for seed in range(SEEDS):
        victim = "driver" if seed % 3 == 2 else "reader"
        after, ranks = int((seed + rng.random()) / (SEEDS + 1) * listener.total), rng.choice((1, 2, 3, 4))
        hits.append(listener.strike(victim, after=after, ranks=ranks))
    listener.finish(ranks=6)
    assert list(map(json.loads, listener.kept())) == undisturbed(latents, listener.total)
    print(hits)
    assert hits.count("driver") == SEEDS // 3
    assert hits.count("reader") >= SEEDS // 3  # while they read
    assert all(hits)
