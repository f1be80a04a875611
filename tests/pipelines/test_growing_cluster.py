"""A command on a cluster that is too small for now: it waits for nodes as long as it is told to, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cluster.session import ClusterError, ray_session
from presto_core.config.sections import ClusterConfig
from tests.servers.local_cluster import local_cluster

NEEDS_TWO = """
from pipelines.cluster.session import ray_session
from presto_core.config.sections import ClusterConfig
with ray_session(ClusterConfig(address="{address}", wait_seconds=500), cpus=2):
    print("there is room")
"""


@pytest.mark.ray
def test_a_wait_that_times_out_is_one_message(shared_ray: None, capfd: pytest.CaptureFixture[str]):
    with (
        pytest.raises(ClusterError, match=r"64 CPUs .* has 2; .*cluster\.wait_seconds"),
        ray_session(ClusterConfig(wait_seconds=1), cpus=64),
    ):
        pass
    assert "64 CPUs and 0 GPUs" in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_comes_is_waited_for(tmp_path: Path):
    with local_cluster(1, tmp_path) as (cluster, environment):
        command = subprocess.Popen(
            [sys.executable, "-c", NEEDS_TWO.format(address=cluster.address)],
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert command.stderr
        assert any("waiting up to 500 s for nodes" in line for line in command.stderr)
        cluster.gain_a_node()
        output, _ = command.communicate(timeout=400)
    assert output.strip() == "there is room"
    assert command.returncode == 0
