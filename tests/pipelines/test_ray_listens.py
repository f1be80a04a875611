"""The Ray that a command starts listens on this machine only, whatever the command imports before it starts it."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.fault_runs import Parents, Training, wait_until
from tests.support.processes import Attempt, title_of
from tests.support.synthetic_dataset import make_dataset

WORKER = "RayTrainWorker"
# Ray decides at its import whether it may be reached from elsewhere
READS_SETTING = "from ray._private import ray_constants; print(ray_constants.ENABLE_RAY_CLUSTER)"


@pytest.mark.parametrize(
    "first",
    [
        "import pipelines.sweep.runner",
        "import pipelines.sweep.search",
        "from pipelines.cluster.ray_environment import set_ray_environment as s; s()",
    ],
)
def test_ray_is_imported_with_its_settings(first: str):
    command = [sys.executable, "-c", f"{first}; {READS_SETTING}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == "False"


def list_reachable(attempt: Attempt) -> list[str]:
    """The ports of a command's processes that other machines reach, each with its process."""
    attempt.look()
    found = []
    for member in attempt.family:
        try:
            connections = member.net_connections("inet")
        except psutil.Error:
            continue
        ports = {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
        found += [
            f"{ip}:{port} {title_of(member)[:60]}"
            for ip, port in ports
            if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback
        ]
    return found


@pytest.mark.ray
@pytest.mark.entry
# over 10 s: a Ray of its own
def test_a_training_with_workers_listens_on_this_machine_only(begin, tmp_path: Path):
    data = Parents(make_dataset(str(tmp_path / "data")).uri)
    attempt = Training("teacher", tmp_path / "run", data, steps=4000, workers=1).begin(begin)
    assert wait_until(attempt, 1), attempt.stderr
    reachable = list_reachable(attempt)
    assert [port for port in reachable if WORKER not in port] == []
    assert len(reachable) <= 1  # PyTorch's rendezvous, which listens everywhere; docs/security.md says so
    assert attempt.is_running
