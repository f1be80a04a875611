"""What a training run in Ray tells Prometheus and the log: scraped from a real node, read from its real session."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
import yaml

from pipelines import telemetry, train_teacher
from pipelines.cluster import ray_session
from pipelines.devices import DEVICES, device_called, device_named
from pipelines.stopping import StoppedError
from pipelines.telemetry import GAUGES, PEAK, peak_flops
from presto_core.config.errors import UserError
from presto_core.config.sections import ClusterConfig
from tests.pipelines.synthetic import make_dataset
from tests.pipelines.test_training_stages import teacher_config

GRAFANA = Path(__file__).parents[2] / "infra/grafana"
GPU_ONLY = {"ray_node_gpus_utilization"}  # of Ray's own, which a node without a GPU does not export
PATIENCE_S = 400.0  # gauges reach the node's agent every few seconds


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def scraped(address: str) -> dict[str, str]:
    """Names of metrics that a node exports -> the first line of each."""
    with urlopen(address, timeout=10) as answer:
        lines = [line.decode() for line in answer]
    return {line.partition("{")[0]: line for line in reversed(lines) if line.startswith("ray_")}


def exported(wanted: set[str]) -> dict[str, str]:
    """What the session's node exports, once all of that is there."""
    import ray

    (node,) = ray.nodes()
    address, found = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", dict[str, str]()
    until = time.monotonic() + PATIENCE_S
    while not wanted <= found.keys() and time.monotonic() < until:
        with suppress(OSError):  # the agent is still starting
            found = scraped(address)
        time.sleep(0.5)
    return found


def log_lines(run_id: str) -> Iterator[dict[str, object]]:
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs/train"
    for path in folder.glob("ray-train-app-worker-*.log"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        yield from (record for record in records if record.get("run_id") == run_id)


def watched() -> set[str]:
    """Metrics that the dashboard and the alerts ask for."""
    dashboard, alerts = (GRAFANA / name for name in ("training.json", "alerts.yaml"))
    expressions = [t["expr"] for panel in json.loads(dashboard.read_text())["panels"] for t in panel["targets"]]
    expressions += [r["expr"] for group in yaml.safe_load(alerts.read_text())["groups"] for r in group["rules"]]
    return {name for expression in expressions for name in re.findall(r"\bray_\w+", expression)}


def test_every_gauge_of_ours_is_on_the_dashboard():
    assert {f"ray_{name}" for name in GAUGES} <= watched()


@pytest.mark.ray
def test_a_run_is_seen_by_prometheus_and_in_the_log(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """While it trains, until all that dashboard and alerts ask for is seen; a worker's gauges go with it."""
    monkeypatch.setenv(PEAK, "0.001")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    group = {"cluster.num_workers": 2, "cluster.cpus_per_worker": 0.5, "loop.checkpoint_every": 50}
    config = teacher_config("store", dataset, **group, **{"teacher.steps": 1_000_000})
    ours, wanted = {f"ray_{name}" for name in GAUGES}, watched() - GPU_ONLY
    with ray_session(ClusterConfig(cpus=2, object_store_mb=100), cpus=1):
        watcher = _Watcher(wanted)
        watcher.start()
        with pytest.raises(StoppedError, match="SIGTERM"):
            train_teacher.run(config)
        found = {name: line for name, line in watcher.found.items() if name in ours}
        (run_id,) = (folder.name for folder in Path("store/runs").iterdir())
        lines = list(log_lines(run_id))
    assert wanted <= watcher.found.keys()
    assert found.keys() == ours
    assert all(f'run_id="{run_id}"' in line and 'stage="train-teacher"' in line for line in found.values())
    assert all(float(line.split()[-1]) > 0 for name, line in found.items() if not name.endswith("wait_seconds"))
    assert abs(float(found["ray_presto_checkpoint_timestamp_seconds"].split()[-1]) - time.time()) < 3600
    assert {(line["rank"], line["message"]) for line in lines} >= {
        (0, "worker starts"),
        (1, "worker starts"),
        (0, "row"),
        (0, "checkpoint"),
    }
    stops = [line for line in lines if line["levelname"] == "WARNING"]
    assert {line["rank"] for line in stops} == {0, 1}
    assert all("train-teacher stopped at step" in str(line["message"]) for line in stops)
    assert "worker starts" not in "".join(capfd.readouterr())


class _Watcher(threading.Thread):
    """Scrapes beside the run until all that is wanted was seen, or patience ends; then tells the run to end."""

    def __init__(self, wanted: set[str]) -> None:
        super().__init__(daemon=True)
        self.wanted, self.found = wanted, dict[str, str]()

    def run(self) -> None:
        try:
            self.found = exported(self.wanted)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("said", ["fast", "0", "-3"])
def test_a_peak_that_is_no_number_is_refused(said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PEAK, said)
    with pytest.raises(UserError, match=f"{PEAK}='{said}' is no number"):
        peak_flops(torch.device("cpu"), bf16=False)


def test_a_cpu_has_no_peak_unless_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PEAK, raising=False)
    assert peak_flops(torch.device("cpu"), bf16=True) == 0
    monkeypatch.setenv(PEAK, "1.5")
    assert peak_flops(torch.device("cpu"), bf16=True) == 1.5e12


@pytest.mark.parametrize(
    ("cuda_name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", None),
        ("NVIDIA A10G", None),
    ],
)
def test_devices_are_known_by_the_name_cuda_gives(cuda_name: str, device: str | None):
    assert device_called(cuda_name) == (DEVICES[device] if device else None)


def test_an_unknown_device_is_refused_with_the_nearest():
    assert device_named("H100") is DEVICES["h100"]
    with pytest.raises(UserError, match="no figures of a device 'h10'; did you mean h100"):
        device_named("h10")


def test_every_tag_belongs_to_a_gauge():
    assert telemetry.EXTRA_TAGS.keys() <= GAUGES.keys()
