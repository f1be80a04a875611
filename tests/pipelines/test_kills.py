"""kill -9 of ingest or of one of its Ray workers at any moment: re-running the command makes the same bytes.

Real processes on real stores, over twenty seeds (`make test-slow`).
"""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import soundfile

from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import read_bytes
from tests.support.music import RATE_HZ, notes, write_awkward_but_good, write_bad, write_music
from tests.support.processes import PATIENCE_S, PRESTO, Attempt, title_of, wait_for

SEEDS = 20
ACTORS = "ray::MapWorker(Map(_ErrorCapturing))"
S3_ROOT = "s3://latents/kills/store"  # the same for all runs: it is written into the data set's config.yaml
pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(3000)]


@dataclass(frozen=True)
class IngestSetup:
    """A source, and the store of its data set."""

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
        settings |= {"max_bad_fraction": 0.5, "validation_fraction": 0.15, "test_fraction": 0.15}
        args = [f"ingest.{name}={value}" for name, value in settings.items()]
        args += ["cluster.cpus=2", "cluster.data_workers=2", "text.max_tokens=8"]
        return [PRESTO, "ingest", *args, f"storage.root={S3_ROOT if self.on_s3 else 'store'}"]

    def list_stored(self) -> list[str]:
        """List the stored segments and shards."""
        found = []
        for part in ("encoded", "artifacts"):
            infos = open_folder(self.root).child(part).list_files(recursive=True, missing_ok=True)
            found += [info.path for info in infos if info.path.endswith(".parquet")]
        return [path for path in found if "/latents/" in path or "/shards/" in path]

    def read_contents(self) -> dict[str, bytes]:
        """Return every byte of the only data set, except for creation time and versions."""
        artifacts = open_folder(self.root).child("artifacts")
        (name,) = artifacts.list_folders()
        folder = artifacts.child(name)
        files = [info.path.removeprefix(f"{folder.path}/") for info in folder.list_files(recursive=True)]
        made = {file: read_bytes(folder, file) for file in files}
        manifest = json.loads(made.pop("manifest.json"))
        made["manifest"] = json.dumps({k: v for k, v in manifest.items() if k not in ("created", "made_with")}).encode()
        assert not open_folder(self.root).child("runs").child(name).list_files(recursive=True, missing_ok=True)
        return made


@dataclass
class UndisturbedRun:
    """An undisturbed run: its data set, its duration, and the number of stored files over time."""

    contents: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    stored: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    @staticmethod
    def observe(setup: IngestSetup, attempt: Attempt) -> UndisturbedRun:
        calm, began = UndisturbedRun(), time.monotonic()
        while attempt.is_running:
            if len(setup.list_stored()) > calm.stored[-1][1]:
                calm.stored.append((time.monotonic() - began, len(setup.list_stored())))
            time.sleep(0.05)
        calm.seconds = time.monotonic() - began
        assert attempt.exit_code() == 0, attempt.stderr
        calm.contents = setup.read_contents()
        return calm

    def moment(self, share: float) -> tuple[int, float]:
        """Return how many files are stored after a fraction of the run, and for how long; independent of load."""
        came, count = max(s for s in self.stored if s[0] <= share * self.seconds)
        return count, share * self.seconds - came


@dataclass(frozen=True)
class Kill:
    """The killed process and the phase of the run: `start` (nothing is encoded), `encode`, `shards`, ..."""

    victim: str
    phase: str


def phase_of(attempt: Attempt, setup: IngestSetup) -> str:
    stderr = attempt.stderr
    if "ingest: run " in stderr:
        return "shards" if "ingest: presto-dataset version" not in stderr else "end"
    if "x real time" in stderr:
        return "between"
    return "encode" if any("/latents/" in path for path in setup.list_stored()) else "start"


def strike(
    attempt: Attempt, setup: IngestSetup, calm: UndisturbedRun, share: float, victim: str, rng: random.Random
) -> Kill | None:
    """Kill the driver or a worker after a fraction of the run; return None if the run ended before."""
    count, later_s = calm.moment(share)
    wait_for(lambda: not attempt.is_running or len(setup.list_stored()) >= count, PATIENCE_S)
    wait_for(lambda: not attempt.is_running, later_s)
    while attempt.is_running:
        phase = phase_of(attempt, setup)
        if victim == "driver":
            attempt.kill()
            if rng.random() < 0.5:  # otherwise the next attempt meets the remains of this one
                attempt.end()
            return Kill("driver", phase)
        for worker, title in rng.sample(found := attempt.workers(ACTORS), len(found)):
            if title == title_of(worker):
                worker.kill()
                return Kill("actor", phase)
        time.sleep(0.02)
    return None


def survive(
    begin, setup: IngestSetup, calm: UndisturbedRun, kills: list[tuple[str, float]], rng: random.Random
) -> list[Kill]:
    """Ingest with a series of kills and resume until it is done; the data set must equal the undisturbed one."""
    attempt, hits = begin(setup.command, setup.cwd), list[Kill]()
    for victim, share in kills:
        if not attempt.is_running:
            if attempt.process.returncode != -signal.SIGKILL and attempt.exit_code() == 0:
                break  # done, and nothing left to kill
            attempt = begin(setup.command, setup.cwd)
        hits += filter(None, [strike(attempt, setup, calm, share, victim, rng)])
    if attempt.process.poll() == -signal.SIGKILL or attempt.exit_code():
        attempt = begin(setup.command, setup.cwd)
        assert attempt.exit_code() == 0, attempt.stderr
    assert "presto-dataset@candidate is version 1 = " in attempt.stderr
    made = setup.read_contents()
    assert made.keys() == calm.contents.keys()
    assert [file for file in made if made[file] != calm.contents[file]] == []
    return hits


@pytest.mark.slow
def test_ingest_is_killed_and_makes_the_same_data_set(begin, tmp_path: Path):
    """Kill a worker while it encodes, then the driver while it writes shards."""
    write_music(tmp_path / "music")
    calm_setup, setup = (
        IngestSetup(tmp_path / "music", tmp_path / name, rows_per_shard=2) for name in ("calm", "killed")
    )
    calm = UndisturbedRun.observe(calm_setup, begin(calm_setup.command, calm_setup.cwd))
    segments = sum("/latents/" in path for path in calm_setup.list_stored())
    first_shard = next(came for came, count in calm.stored if count > segments) / calm.seconds
    kills = [("worker", 0.0), ("driver", first_shard + 1e-9)]
    worker, driver = survive(begin, setup, calm, kills, random.Random(0))
    assert worker.victim != "driver"
    assert driver == Kill("driver", "shards")


@dataclass(frozen=True)
class KillStudy:
    """A source with many files, and its undisturbed data set in each kind of store."""

    folder: Path
    calm: dict[bool, UndisturbedRun]

    def make_setup(self, name: str, *, on_s3: bool) -> IngestSetup:
        if on_s3:
            open_folder(S3_ROOT).delete()
        return IngestSetup(self.folder / "music", self.folder / name, on_s3)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, object_store: Server) -> KillStudy:
    """Twenty minutes of music in 35 files: short, unusual, bad, and long ones with several segments."""
    folder = tmp_path_factory.mktemp("kills")
    write_music(folder / "music")
    write_awkward_but_good(folder / "music/odd")
    write_bad(folder / "music/bad")
    for i in range(8):
        soundfile.write(folder / f"music/long {i}.flac", notes(160 + 80 * i, seed=100 + i), RATE_HZ)
    return KillStudy(folder, {})


def draw_kills(seed: int, attempt: int, rng: random.Random) -> list[tuple[str, float]]:
    """Draw one to three kills; the first kills of all seeds are spread evenly over a run, per kind of victim."""
    first = ("driver" if seed % 2 else "worker", (seed // 2 + rng.random()) / (SEEDS / 2) * 0.9**attempt)
    return [first, *((rng.choice(("driver", "worker")), rng.random()) for _ in range(rng.choice((0, 0, 1, 2))))]


KILLS: dict[int, list[Kill]] = {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_ingest_survives_kills_at_random_moments(begin, studio: KillStudy, seed: int):
    on_s3, rng = seed % 5 == 4, random.Random(seed)
    if on_s3 not in studio.calm:
        setup = studio.make_setup(f"calm {on_s3}", on_s3=on_s3)
        studio.calm[on_s3] = UndisturbedRun.observe(setup, begin(setup.command, setup.cwd))
    for attempt in range(6):  # a kill near the end can come too late
        setup = studio.make_setup(f"killed {seed} {attempt}", on_s3=on_s3)
        KILLS[seed] = survive(begin, setup, studio.calm[on_s3], draw_kills(seed, attempt, rng), rng)
        if KILLS[seed]:
            break
    print(f"seed {seed}: {KILLS[seed]}")
    assert KILLS[seed]


@pytest.mark.slow
def test_the_kills_hit_every_phase_in_drivers_and_in_workers():
    if len(KILLS) < SEEDS:
        pytest.skip("needs the kills of all seeds")
    hit = {(kill.victim, kill.phase) for kills in KILLS.values() for kill in kills}
    assert {(victim, phase) for victim in ("driver", "actor") for phase in ("encode", "shards")} <= hit
