"""A Ray cluster as in production: a head and worker nodes, each started by its own `ray start`, with a token.

All nodes are on loopback and are killed as by a power cut. A job gets its S3 credentials from the nodes' environment,
never from the client that submits it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.request import Request, urlopen

import psutil

from pipelines.storage.local_s3 import find_free_ports
from tests.servers.local_cluster import ENVIRONMENT
from tests.support.processes import is_alive, title_of, wait_for

STARTS, STARTED_S = 3, 180  # one start takes some five seconds on an idle machine
HEAD = "127.0.0.1"
# Ray listens on loopback only with address 127.0.0.1, but `ray start` rejects several nodes at this address
START = """
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
from ray.scripts.scripts import main
main()
"""
WORKER = "RayTrainWorker"


class RayCluster:
    """A cluster that runs while the context is open.

    Attributes:
        url: URL of the Jobs API, at the head's dashboard.
        token: its authentication token.
        nodes: the `ray start` processes, the head first.
    """

    def __init__(
        self, folder: Path, *, cpus: tuple[float, ...], environment: Mapping[str, str], closed: bool = True
    ) -> None:
        self.folder, self.cpus, self.token = folder, cpus, secrets.token_hex(32)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.temp = Path(tempfile.mkdtemp(prefix="presto-plane-"))  # not below `folder`: paths of sockets must be short
        home = folder / "home"
        home.mkdir(parents=True)
        # the operator's: neither the project's interpreter nor its source is on a path
        self.environment = {
            **ENVIRONMENT,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "RAY_AUTH_MODE": "token" if closed else "disabled",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_worker_niceness": "0",
            **environment,
        }
        self.gcs, self.dashboard, self.client = find_free_ports(3)
        self.url = f"http://{HEAD}:{self.dashboard}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start all nodes, at the same ports as before."""
        head = [
            "--head",
            f"--port={self.gcs}",
            f"--dashboard-host={HEAD}",
            f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={self.client}",
            "--num-cpus=0",
        ]
        try:
            self._start(*head)
            for cpus in self.cpus:
                self._start(f"--address={HEAD}:{self.gcs}", f"--num-cpus={cpus:g}")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            end(node)
        shutil.rmtree(self.temp, ignore_errors=True)

    def lose_node(self, number: int) -> None:
        """Kill a node's raylet with SIGKILL; its child processes are orphaned, as in a network partition."""
        self.raylet(number).kill()

    def lose_all_nodes(self) -> None:
        """Kill the head and all other nodes, with everything that runs on them, as where a network goes down."""
        for node in self.nodes:
            family = psutil.Process(node.pid).children(recursive=True)
            node.kill()
            node.wait(60)
            for member in family:
                with suppress(psutil.Error):
                    member.kill()
        self.nodes.clear()

    def raylet(self, number: int) -> psutil.Process:
        (found,) = [p for p in psutil.Process(self.nodes[number].pid).children() if p.name() == "raylet"]
        return found

    def has_training_worker(self, number: int) -> bool:
        """Return whether a training worker runs on a node."""
        with suppress(psutil.Error, ValueError):
            return any(WORKER in title_of(child) for child in self.raylet(number).children(recursive=True))
        return False

    def has_ended(self, job_id: str) -> bool:
        return not any(f'"status": "{status}"' in self.get(f"/api/jobs/{job_id}") for status in ("PENDING", "RUNNING"))

    def count_alive_nodes(self) -> int:
        return self.get("/api/v0/nodes?detail=1").count('"state": "ALIVE"')

    def get(self, path: str) -> str:
        """Return the dashboard's response; empty if it does not answer."""
        with suppress(OSError):
            request = Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
            return str(urlopen(request, timeout=10).read().decode())
        return ""

    def _start(self, *options: str) -> None:
        """Start another node, with retries: on a busy machine Ray can exceed its start-up limit of half a minute."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        for _ in range(STARTS):
            node = self._launch(*options, log=log)
            self.nodes.append(node)
            wait_for(
                lambda: self.count_alive_nodes() == len(self.nodes) or node.poll() is not None,  # noqa: B023
                STARTED_S,
                step_s=0.2,
            )
            if node.poll() is None and self.count_alive_nodes() == len(self.nodes):
                return
            end(self.nodes.pop())
        raise AssertionError(log.read_text())

    def _launch(self, *options: str, log: Path) -> subprocess.Popen[bytes]:
        ports = find_free_ports(6)
        names = (
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "metrics-export-port",
            "runtime-env-agent-port",
            "node-manager-port",
            "object-manager-port",
        )
        command = [sys.executable, "-c", START, "start", "--block", f"--node-ip-address={HEAD}", *options]
        command += [f"--{name}={port}" for name, port in zip(names, ports)]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 * 2**20}"]
        command += ["--disable-usage-stats"]
        command.append(f"--temp-dir={self.temp / str(len(self.nodes))}")  # holds the job's package, once per node
        with log.open("wb") as file:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )


def end(node: subprocess.Popen[bytes]) -> None:
    """Stop a node and its child processes, by their ids, because others use this machine too."""
    with suppress(psutil.Error):
        family = psutil.Process(node.pid).children(recursive=True)
        node.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            node.wait(30)
        for member in filter(is_alive, family):
            with suppress(psutil.Error):
                member.kill()
    node.kill()
    node.wait(60)


def make_user_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of another user on another machine: a separate home, nothing from this shell."""
    home.mkdir(parents=True, exist_ok=True)
    source = os.environ.get("PYTHONPATH", "")
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    return path | ({"PYTHONPATH": source} if source else {}) | {"HOME": str(home)} | more
