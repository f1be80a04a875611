"""The Ray session of a command: start one on this machine or join a cluster, and check its resources early."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil

from pipelines.cluster.ray_environment import set_ray_environment
from pipelines.cluster.shutdown import keep_signal_handlers
from pipelines.console import console
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError

# CPUs reserved per training worker for reading shards: without them Ray Data's tasks are never scheduled.
READER_CPUS = 0.1


class ClusterError(UserError):
    """Ray cannot be reached, or has too few resources for the request."""


class HeadAwayError(ClusterError):
    """The head of the cluster that a command joined, or wanted to join, does not answer.

    Attributes:
        address: where it should answer, or a name that Ray itself resolves.
        was_joined: whether it answered before.
    """

    def __init__(self, message: str, address: str, *, was_joined: bool = False) -> None:
        super().__init__(message)
        self.address, self.was_joined = address, was_joined


@contextmanager
def ray_session(config: ClusterConfig, *, cpus: float, gpus: float = 0) -> Iterator[None]:
    """Run a block with Ray connected.

    A session that is already open in this process is used and left open; one that is started here is shut down.

    Args:
        cpus, gpus: resources that the block needs at the same time.

    Raises:
        HeadAwayError: the address does not answer, or not any more when the block fails.
        ClusterError: the cluster has too few resources.
    """
    set_ray_environment()
    owns_session = "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    if owns_session:
        with keep_signal_handlers():
            _connect(config)
    import ray

    head = find_head(config)
    try:
        with _request_autoscaling(config, cpus=cpus, gpus=gpus):
            check_resources(ray.cluster_resources(), cpus=cpus, gpus=gpus)
            yield
    except (ClusterError, ray.exceptions.RayError) as error:
        if not head or isinstance(error, HeadAwayError) or answers(head):
            raise
        raise HeadAwayError(
            f"the head of the Ray cluster at {head} does not answer any more; re-run the same command to resume",
            head,
            was_joined=True,
        ) from error
    finally:
        if owns_session:
            ray.shutdown()


def cluster_address(config: ClusterConfig) -> str:
    """Return the address of the Ray cluster that a command joins; empty if it starts its own."""
    return config.address or os.environ.get("RAY_ADDRESS", "")


def find_head(config: ClusterConfig) -> str:
    """Return host and port of the head that this process has joined; empty if it started Ray itself."""
    import ray

    return str(ray.get_runtime_context().gcs_address) if cluster_address(config) else ""


def count_workers(config: ClusterConfig, *, in_sweep: bool = False) -> int:
    """Number of training workers; 0 if the command's own process, or that of a sweep's trial, trains."""
    if config.num_workers != "auto":
        return config.num_workers
    return 0 if in_sweep else int(bool(cluster_address(config) or config.gpus_per_worker))


def uses_ray_reader(config: ClusterConfig) -> bool:
    """Return whether Ray Data reads for training workers; `auto` selects it if a cluster is joined."""
    return config.reader == "ray" or (config.reader == "auto" and bool(cluster_address(config)))


def training_cpus(config: ClusterConfig) -> float:
    """Return the CPUs of the smallest group of training workers and their readers."""
    return min_workers(config) * (config.cpus_per_worker + READER_CPUS)


def min_workers(config: ClusterConfig) -> int:
    """Return the least number of workers with which training starts."""
    return max(config.min_workers or count_workers(config), 1)


def resources_per_worker(config: ClusterConfig) -> dict[str, float]:
    """Return the resources per worker, with Ray's names."""
    gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    return {"CPU": config.cpus_per_worker, **gpus}


def _connect(config: ClusterConfig) -> None:
    address = cluster_address(config)
    if address:
        check_reachable(address)
    elif not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        # a token for this session only; otherwise Ray writes a world-readable one to the home folder
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=config.cpus or None,
                object_store_memory=config.object_store_mb * 2**20,
                include_dashboard=False,
                **common,
            )
    except Exception as error:  # Ray raises a bare Exception if the start takes too long
        problem = f"no Ray cluster answers at {address!r}" if address else "Ray cannot start on this machine"
        hint = "check the cluster" if address else "free memory and CPUs"
        reason = " ".join(str(error).split())[:300].rstrip(".")
        message = f"{problem}: {reason}; {hint} and re-run the same command"
        raise (HeadAwayError(message, address) if address else ClusterError(message)) from error
    _disable_ray_output()


def _disable_ray_output() -> None:
    """Keep Ray's output off the console; its logs stay in the session folder."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_reachable(address: str) -> None:
    """Check that an address accepts connections, because ray.init retries a dead one for ten minutes.

    Raises:
        HeadAwayError: it does not.
    """
    try:
        _connect_once(address)
    except OSError as error:
        raise HeadAwayError(
            f"no Ray cluster answers at {address!r} ({error.strerror or error}); start it or correct cluster.address",
            address,
        ) from None


def answers(address: str) -> bool:
    """Return whether an address accepts connections; True for a name that only Ray resolves."""
    with suppress(OSError):
        _connect_once(address)
        return True
    return False


def _connect_once(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():  # not "auto" and other names that Ray itself resolves
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _request_autoscaling(config: ClusterConfig, *, cpus: float, gpus: float) -> Iterator[None]:
    """If the cluster is too small, request the resources from its autoscaler, wait, and hold them for the block."""
    import ray
    from ray.autoscaler.sdk import request_resources

    needed = {"CPU": cpus, "GPU": gpus}
    if not config.wait_seconds or _has_resources(ray.cluster_resources(), needed):
        yield
        return
    head = find_head(config)
    console.print(f"waiting up to {config.wait_seconds} s for nodes with {cpus:g} CPUs and {gpus:g} GPUs")
    request_resources(num_cpus=ceil(cpus), bundles=[{"GPU": 1}] * ceil(gpus))
    deadline = time.monotonic() + config.wait_seconds
    try:
        while not _has_resources(ray.cluster_resources(), needed) and time.monotonic() < deadline:
            time.sleep(1)
        yield
    finally:
        if not head or answers(head):  # Ray would end this process
            request_resources(num_cpus=0)


def _has_resources(available: dict[str, float], needed: dict[str, float]) -> bool:
    return all(available.get(name, 0.0) >= amount - 1e-6 for name, amount in needed.items())


def check_resources(available: dict[str, float], *, cpus: float, gpus: float) -> None:
    """Check that a cluster has the needed resources.

    Args:
        available: resources of the cluster, with Ray's names.

    Raises:
        ClusterError: it has less.
    """
    for name, key, needed in (("CPUs", "CPU", cpus), ("GPUs", "GPU", gpus)):
        have = available.get(key, 0.0)
        if needed > have + 1e-6:
            raise ClusterError(
                f"the command needs {needed:g} {name} and the Ray cluster has {have:g}; lower cluster.num_workers, "
                "cluster.cpus_per_worker or cluster.data_workers, use a larger cluster, or, with an autoscaler, "
                "set cluster.wait_seconds=900"
            )
