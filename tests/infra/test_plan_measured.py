"""`presto plan --measured`: what a benchmark measured replaces what a plan assumes, of the right device alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infra.cli.main import app
from infra.planning.device_model import NETWORK_SHARE, TRAFFIC, rates_from_measured
from infra.planning.measured import read_measured_device
from presto_core.errors import UserError

PEAK, COPY, SHARE = 1e11, 2e10, 0.4  # FLOP/s, bytes/s, and what products of the network reach of the peak
FLOPS, KEPT = 3e9, 5e7  # of one clip's network
CPU_FILE: dict[str, Any] = {
    "hardware": {"device": "Some CPU @ 2.00GHz", "torch": "2", "threads": 1},
    "device_type": "cpu",
    "matmul_peak_gflops": PEAK / 1e9,
    "matmul_bf16_peak_gflops": 3 * PEAK / 1e9,
    "copy_gb_per_s": COPY / 1e9,
    "launch_us": 1.0,
    "launches": 1000,
    "ms": {"network": {"p50": 1e3 * (FLOPS / (SHARE * PEAK) + TRAFFIC * KEPT / COPY)}},
    "cost_model": {"flops": FLOPS, "activation_bytes": KEPT},
}
GPU_FILE = CPU_FILE | {
    "hardware": {"device": "NVIDIA H100 80GB HBM3", "torch": "2", "threads": 4},
    "device_type": "cuda",
    "matmul_peak_gflops": 50e3,
    "matmul_bf16_peak_gflops": 700e3,
    "copy_gb_per_s": 2800.0,
    "launch_us": 4.0,
    "ms": {"network": {"p50": 4.1}},  # hardly more than 1,000 launches take
}


def run_plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=True)


def write(folder: Path, body: Any) -> str:
    path = folder / "measured.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return str(path)


def replace_value(body: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the file with another value of a dotted key; None removes it."""
    changed = copy.deepcopy(body)
    *parents, last = key.split(".")
    inside = changed
    for part in parents:
        inside = inside[part]
    inside[last] = value
    if value is None:
        del inside[last]
    return changed


def plan_json(*arguments: str) -> dict[str, Any]:
    done = run_plan(*arguments, "--json")
    assert done.exception is None, done.exception
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def compute_seconds(body: dict[str, Any]) -> list[float]:
    return [stage["step"]["compute"] for stage in body["stages"]]


def test_the_share_of_products_is_what_explains_the_networks_time(tmp_path: Path):
    measured = read_measured_device(write(tmp_path, CPU_FILE), traffic=TRAFFIC)
    assert measured.network_share == pytest.approx(SHARE)
    assert rates_from_measured(measured, bf16=False).flops == pytest.approx(SHARE * PEAK)
    assert rates_from_measured(measured, bf16=True).flops == pytest.approx(SHARE * 3 * PEAK)
    assert rates_from_measured(measured, bf16=False).bytes_s == pytest.approx(COPY)


@pytest.mark.parametrize("body", [GPU_FILE, replace_value(CPU_FILE, "cost_model", {})], ids=["launches", "imported"])
def test_a_network_that_does_not_tell_leaves_the_assumed_share(body: dict[str, Any], tmp_path: Path):
    measured = read_measured_device(write(tmp_path, body), traffic=TRAFFIC)
    assert measured.network_share is None
    assert rates_from_measured(measured, bf16=False).flops == NETWORK_SHARE * 1e9 * body["matmul_peak_gflops"]


def test_a_cpu_is_planned_without_measuring_it_again(tmp_path: Path):
    """Twice the speed in everything halves the time but for the fixed overhead of a step."""
    words = ("demo", "--device", "here", "--gpus", "1", "--measured")
    slow = plan_json(*words, write(tmp_path, CPU_FILE))
    assert "Some CPU" in " ".join(slow["assumptions"])
    assert "40% of a large product's, measured" in " ".join(slow["assumptions"])
    assert all(0 < stage["utilisation"] < SHARE for stage in slow["stages"])
    fast = copy.deepcopy(CPU_FILE)
    for name in ("matmul_peak_gflops", "matmul_bf16_peak_gflops", "copy_gb_per_s"):
        fast[name] *= 2
    for values, name in ((fast, "launch_us"), (fast["ms"]["network"], "p50")):
        values[name] /= 2
    halved = compute_seconds(plan_json(*words, write(tmp_path, fast)))
    overhead = 2e-3
    assert [t - overhead for t in halved] == pytest.approx([(t - overhead) / 2 for t in compute_seconds(slow)])


def test_a_gpu_keeps_its_memory_and_links(tmp_path: Path):
    path = write(tmp_path, GPU_FILE)
    assumed, measured = plan_json("paper"), plan_json("paper", "--measured", path)
    assert measured["measured"] == path
    assert "measured" not in assumed
    for before, after in zip(assumed["stages"], measured["stages"], strict=True):
        assert after["memory"] == before["memory"]
        assert after["step"]["exchanged_bytes"] == before["step"]["exchanged_bytes"]
        assert after["step"]["compute"] != before["step"]["compute"]
    assumptions = " ".join(measured["assumptions"])
    assert "not measured here" not in assumptions
    assert "80% of a large product's, assumed" in assumptions
    assert path in run_plan("paper", "--measured", path, "--dry-run").stdout


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ("{", (), "is not JSON of presto benchmark"),
        ("[1]", (), "is not JSON of presto benchmark"),
        (replace_value(GPU_FILE, "launch_us", None), (), "has no launch_us"),
        (replace_value(GPU_FILE, "ms.network.p50", None), (), "has no ms.network.p50"),
        (replace_value(GPU_FILE, "copy_gb_per_s", -1.0), (), "copy_gb_per_s=-1.0"),
        (replace_value(GPU_FILE, "matmul_bf16_peak_gflops", "fast"), (), "matmul_bf16_peak_gflops='fast'"),
        (json.dumps(replace_value(GPU_FILE, "launch_us", float("nan"))), (), "launch_us=nan"),
        (GPU_FILE, ("--device", "l4"), "--device h100"),
        (GPU_FILE, ("--device", "here"), "--device h100"),
        (CPU_FILE, (), "--device here"),
        (replace_value(CPU_FILE, "hardware.threads", 2), ("--device", "here"), "cluster.torch_threads=2"),
    ],
)
def test_mistakes_are_one_message(body: Any, arguments: tuple[str, ...], message: str, tmp_path: Path):
    error = run_plan("demo", "--gpus", "1", *arguments, "--measured", write(tmp_path, body)).exception
    assert isinstance(error, UserError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    error = run_plan("demo", "--measured", str(tmp_path / "no.json")).exception
    assert isinstance(error, UserError)
    assert "no.json cannot be read" in str(error)
