"""A training run in its own Ray session, scraped while it runs: `python -m tests.support.scraped_run DATASET`.

Trains until every metric that dashboard and alerts query was seen, or until a timeout; then stops by SIGTERM. Prints
JSON: the run's id, name -> line of each metric, and the run's lines in the workers' logs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import yaml

from pipelines.cluster.session import ray_session
from pipelines.cluster.shutdown import StoppedError
from pipelines.stages import train_teacher
from presto_core.config.sections import ClusterConfig
from tests.pipelines.test_training_stages import teacher_config

GRAFANA = Path(__file__).parents[2] / "infra/grafana"
GPU_ONLY = {"ray_node_gpus_utilization"}  # a metric of Ray that a node without a GPU does not export
PATIENCE_S = 400.0  # gauges reach the node's agent every few seconds
GROUP = {"cluster.num_workers": 2, "cluster.cpus_per_worker": 0.5, "loop.checkpoint_every": 50}


def read_expected_metrics() -> set[str]:
    """Return the metrics that the dashboard and the alerts query."""
    dashboard, alerts = (GRAFANA / name for name in ("training.json", "alerts.yaml"))
    expressions = [t["expr"] for panel in json.loads(dashboard.read_text())["panels"] for t in panel["targets"]]
    expressions += [r["expr"] for group in yaml.safe_load(alerts.read_text())["groups"] for r in group["rules"]]
    return {name for expression in expressions for name in re.findall(r"\bray_\w+", expression)}


class Scraper(threading.Thread):
    """Scrapes the session's node during the run, then stops the run."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: dict[str, str] = {}

    def run(self) -> None:
        try:
            self.found = _scrape(read_expected_metrics() - GPU_ONLY)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def _scrape(wanted: set[str]) -> dict[str, str]:
    import ray

    (node,) = ray.nodes()
    address, found = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", dict[str, str]()
    until = time.monotonic() + PATIENCE_S
    while not wanted <= found.keys() and time.monotonic() < until:
        with suppress(OSError), urlopen(address, timeout=10) as answer:  # the agent may still be starting
            lines = [line.decode() for line in answer]
            found = {line.partition("{")[0]: line for line in reversed(lines) if line.startswith("ray_")}
        time.sleep(0.5)
    return found


def _log_lines(run_id: str) -> Iterator[dict[str, object]]:
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs/train"
    for path in folder.glob("ray-train-app-worker-*.log"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        yield from (record for record in records if record.get("run_id") == run_id)


def main(dataset: str) -> None:
    config = teacher_config("store", dataset, **GROUP, **{"teacher.steps": 1_000_000})
    with ray_session(ClusterConfig(cpus=2, object_store_mb=100), cpus=1):
        watcher = Scraper()
        watcher.start()
        with suppress(StoppedError):
            train_teacher.run(config)
        (run_id,) = (folder.name for folder in Path("store/runs").iterdir())
        print(json.dumps({"run_id": run_id, "metrics": watcher.found, "lines": list(_log_lines(run_id))}))


if __name__ == "__main__":
    main(sys.argv[1])
