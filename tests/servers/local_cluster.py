"""A Ray cluster of several nodes on this machine, in its own process; nodes are killed as by a power cut.

`python -m tests.servers.local_cluster NODES` prints the address; `lose` on standard input kills the last node, `gain`
starts another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# detects a dead node in seconds instead of half a minute
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class LocalCluster:
    """A running cluster that can lose and gain nodes; `address` is the value for cluster.address."""

    def __init__(self, nodes: int, environment: dict[str, str], log: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.local_cluster", str(nodes)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        assert self.address, f"the cluster did not start; see {log}"

    def lose_a_node(self) -> None:
        self._send("lose", "lost")

    def gain_a_node(self) -> None:
        self._send("gain", "gained")

    def _send(self, request: str, answer: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == answer

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextmanager
def local_cluster(nodes: int, folder: Path) -> Iterator[tuple[LocalCluster, dict[str, str]]]:
    """Run a cluster of nodes with one CPU each; yield it and the environment for a command that joins it."""
    environment = (
        os.environ | ENVIRONMENT | {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    cluster = LocalCluster(nodes, environment, folder / "cluster.log")
    try:
        yield cluster, environment
    finally:
        cluster.end()


def _serve(nodes: int) -> None:
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    others = [cluster.add_node(**size) for _ in range(nodes - 1)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "gain":
            others.append(cluster.add_node(**size))
            print("gained", flush=True)
        else:
            cluster.remove_node(others.pop(), allow_graceful=False)
            print("lost", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
