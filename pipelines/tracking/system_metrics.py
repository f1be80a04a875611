"""Log the load of a command's machine with MLflow's monitors: processor, memory, disk, network and GPUs.

The values are logged like all metrics of a run, so an unreachable server neither loses values nor delays the command.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.tracking.run import TrackedRun

INTERVAL_S = 10.0


@contextmanager
def sample_system_metrics(run: TrackedRun, start_ms: int) -> Iterator[None]:
    """Sample while the block runs; a sample's step is the time in seconds since the start of the first attempt."""
    done = threading.Event()
    interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or INTERVAL_S)

    def watch() -> None:
        monitors: list[Any] = []
        while not done.wait(interval_s):
            monitors = monitors or _make_monitors()
            run.log(int(time.time() - start_ms / 1000), _sample(monitors))

    thread = threading.Thread(target=watch, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values


def _make_monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no GPU, or no package that monitors it
        monitors.append(GPUMonitor())
    return monitors
