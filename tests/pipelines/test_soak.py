"""Long runs: memory stays flat over many steps and validations, and an MLflow that is away for long loses no point.

Not in CI: `make test-soak`, about fifteen minutes.
"""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipelines.evaluate.validator import Validator
from pipelines.stages import train_teacher
from pipelines.tracking import run as tracking_run
from pipelines.tracking.client import create_client
from pipelines.tracking.tags import RUN_ID
from presto_core.config.sections import TrackingConfig
from presto_core.config.validation import ValidationConfig
from tests.pipelines.test_training_stages import teacher_config
from tests.servers.mlflow_server import MlflowServer
from tests.support.processes import wait_for
from tests.support.synthetic_dataset import make_dataset

STEPS, VALIDATIONS = 20_000, 2_000
WARM_UP = 0.3  # of the time: allocators and caches fill up
MAX_GROWTH_MB = 12.0  # from the end of the warm-up to the end; 600 bytes a step
SPEED = 100  # of the outage: minutes are seconds, and waits and buffers are as much smaller
AWAY_S = 30 * 60 / SPEED

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(3600)]


@dataclass
class MemoryRecord:
    """Resident memory of this process over time.

    Attributes:
        samples: [seconds, MB] in order.
    """

    samples: list[tuple[float, float]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemoryRecord:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(0.5):
            self.samples.append((time.monotonic(), process.memory_info().rss / 2**20))

    def measure_growth(self) -> float:
        """Return MB by which a straight line through all samples after the warm-up rises."""
        seconds, megabytes = np.array(self.samples).T
        late = seconds >= seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
        slope, _ = np.polyfit(seconds[late], megabytes[late], 1)
        return float(slope * (seconds[late][-1] - seconds[late][0]))


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def test_a_leak_of_a_kilobyte_a_step_is_seen():
    """The control of the two tests below: what they would measure if each of 20,000 steps left a kilobyte."""
    kept = []
    with MemoryRecord() as record:
        for _ in range(200):
            kept.append(bytearray(STEPS * 1024 // 200))
            time.sleep(0.05)
    assert record.measure_growth() > MAX_GROWTH_MB


def test_memory_is_flat_over_many_steps(dataset: str):
    many = {"teacher.steps": STEPS, "loop.log_every": 10, "loop.checkpoint_every": 1_000}
    with MemoryRecord() as record:
        train_teacher.run(teacher_config("store", dataset, **many))
    print(f"{STEPS} steps: memory grew by {record.measure_growth():.1f} MB in {len(record.samples) / 2:.0f} s")
    assert record.measure_growth() < MAX_GROWTH_MB


def test_memory_is_flat_over_many_validations(dataset: str):
    teacher = train_teacher.run(teacher_config("store", dataset))
    validate = Validator(ValidationConfig(samples=8, embedding="latents"), dataset)
    values = set()
    with MemoryRecord() as record:
        for _ in range(VALIDATIONS):
            values.add(validate(teacher.uri)["fd"])
        gc.collect()
    print(f"{VALIDATIONS} validations: memory grew by {record.measure_growth():.1f} MB")
    assert len(values) == 1
    assert record.measure_growth() < MAX_GROWTH_MB


@pytest.mark.services
def test_half_an_hour_without_mlflow_loses_and_repeats_no_point(
    dataset: str, own_mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
):
    """The server is stopped while the teacher trains; more points come meanwhile than the buffer holds."""
    for name in ("PAUSE_S", "FLUSH_EVERY_S", "CATCH_UP_EVERY_S"):
        monkeypatch.setattr(tracking_run, name, getattr(tracking_run, name) / SPEED)
    monkeypatch.setattr(tracking_run, "MAX_BUFFERED_POINTS", tracking_run.MAX_BUFFERED_POINTS // SPEED)
    config = teacher_config(
        "store",
        dataset,
        **{"tracking.uri": own_mlflow.uri, "teacher.steps": 8_000, "loop.log_every": 1, "loop.checkpoint_every": 500},
    )
    client, _ = create_client(TrackingConfig(uri=own_mlflow.uri))
    times: list[float] = []

    def find_runs() -> list[Any]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, f"tags.`{RUN_ID}` != ''"))

    def is_followed() -> bool:
        return any("dsm_loss" in run.data.metrics for run in find_runs())

    def go_away() -> None:
        assert wait_for(is_followed, 120, step_s=0.2)
        times.append(time.monotonic())
        own_mlflow.kill()
        time.sleep(AWAY_S)
        own_mlflow.start()
        times.append(time.monotonic())

    outage = threading.Thread(target=go_away)
    outage.start()
    teacher = train_teacher.run(config)
    ended = time.monotonic()
    outage.join()
    stopped, back = times
    assert back - stopped >= AWAY_S
    assert ended > back, "the run ended before the server was back; give it more steps"
    (run,) = find_runs()
    assert run.data.tags[RUN_ID] == teacher.id
    history = client.get_metric_history(run.info.run_id, "dsm_loss")
    assert [point.step for point in history] == list(range(1, config.teacher.steps + 1))
    assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(history))
