"""Metrics and logs of a training run in Ray: scraped from a real node, and read from its session folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.train import telemetry
from pipelines.train.device_specs import DEVICES, device_by_key, device_from_torch_name
from pipelines.train.telemetry import GAUGES, PEAK_TFLOPS_VAR, find_peak_flops
from presto_core.errors import UserError
from tests.support.scraped_run import GPU_ONLY, read_expected_metrics
from tests.support.synthetic_dataset import make_dataset


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def test_every_gauge_of_ours_is_on_the_dashboard():
    assert {f"ray_{name}" for name in GAUGES} <= read_expected_metrics()


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_seen_by_prometheus_and_in_the_log(dataset: str):
    """Run in its own process: its workers need another environment than those of the shared session."""
    environment = os.environ | {PEAK_TFLOPS_VAR: "0.001", "RAY_metrics_report_interval_ms": "1000"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "tests.support.scraped_run", dataset]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    _check_exported(seen["metrics"], seen["run_id"])
    _check_logged(seen["lines"])
    assert "worker starts" not in done.stderr


def _check_exported(metrics: dict[str, str], run_id: str) -> None:
    assert read_expected_metrics() - GPU_ONLY <= metrics.keys()
    ours = {name: metrics[f"ray_{name}"] for name in GAUGES}
    assert all(f'run_id="{run_id}"' in line and 'stage="train-teacher"' in line for line in ours.values())
    values = {name: float(line.split()[-1]) for name, line in ours.items()}
    assert all(value > 0 for name, value in values.items() if name != "presto_data_wait_seconds")
    assert abs(values["presto_checkpoint_timestamp_seconds"] - time.time()) < 3600


def _check_logged(lines: list[dict[str, object]]) -> None:
    logged = {(line["rank"], line["message"]) for line in lines}
    assert logged >= {(0, "worker starts"), (1, "worker starts"), (0, "row"), (0, "checkpoint")}
    stops = [line for line in lines if line["levelname"] == "WARNING"]
    assert {line["rank"] for line in stops} == {0, 1}
    assert all("train-teacher stopped at step" in str(line["message"]) for line in stops)


@pytest.mark.parametrize("value", ["fast", "0", "-3"])
def test_a_peak_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PEAK_TFLOPS_VAR, value)
    with pytest.raises(UserError, match=re.escape(f"{PEAK_TFLOPS_VAR}='{value}'")):
        find_peak_flops(torch.device("cpu"), bf16=False)


def test_the_peak_of_fp32_depends_on_tf32():
    """Of an A100: 19.5, 156 and 312 TFLOP/s by its data sheet."""
    a100 = device_by_key("a100")
    fp32, tf32, bf16 = a100.peak_flops(bf16=False), a100.peak_flops(bf16=False, tf32=True), a100.peak_flops(bf16=True)
    assert (fp32, tf32, bf16) == (19.5e12, 156e12, 312e12) == (fp32, tf32, a100.peak_flops(bf16=True, tf32=True))


def test_a_cpu_has_no_peak_unless_it_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PEAK_TFLOPS_VAR, raising=False)
    assert find_peak_flops(torch.device("cpu"), bf16=True) == 0
    monkeypatch.setenv(PEAK_TFLOPS_VAR, "1.5")
    assert find_peak_flops(torch.device("cpu"), bf16=True) == 1.5e12


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
    assert device_from_torch_name(cuda_name) == (DEVICES[device] if device else None)


def test_an_unknown_device_is_refused_with_the_nearest():
    assert device_by_key("H100") is DEVICES["h100"]
    with pytest.raises(UserError, match=r"'h10'.*h100"):
        device_by_key("h10")


def test_every_tag_belongs_to_a_gauge():
    assert telemetry.EXTRA_TAGS.keys() <= GAUGES.keys()
