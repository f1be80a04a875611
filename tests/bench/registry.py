"""The registry at scale: search and show among 10,000 versions; pull against plain boto3 (`--only registry`)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from infra.cli import registry as commands
from pipelines.presets.resolve import load_stage_config
from pipelines.registry import names, transfer
from pipelines.registry.search_filter import NUMBERS, list_settings
from pipelines.storage import filesystem as storage
from pipelines.storage import local_s3
from pipelines.storage.filesystem import open_folder
from pipelines.storage.s3_clients import create_s3_client
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, commit_artifact
from tests.bench.clock import Comparison, alternate

MODEL = "presto-generator"
SETTINGS = tuple(list_settings())[:60]
FILES, FILE_MB = 8, 64


def measure(*, versions: int, rounds: int) -> list[Comparison]:
    """Measure the commands that read the registry, and pull relative to boto3."""
    with _scratch_folder() as folder:
        root = f"storage.root={folder / 'store'}"
        fill(open_tracker(load_stage_config("registry", [root]).tracking), folder / "store", versions)
        return [*_time_commands(root, versions, rounds), *_time_pulls(folder, rounds)]


def fill(tracker: Any, root: Path, count: int) -> None:
    """Write versions and runs as `publish` does, directly into MLflow's tables: its API would take hours."""
    from mlflow.store.model_registry.dbmodels import models as registry
    from mlflow.store.tracking.dbmodels import models as tracking
    from sqlalchemy import create_engine, insert

    rng, now = random.Random(0), int(time.time() * 1000)
    rows: dict[Any, list[dict[str, Any]]] = {}
    for number in range(1, count + 1):
        run, tags = _version(rng, number)
        common = {"source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": ""}
        rows.setdefault(tracking.SqlRun, []).append(
            {"run_uuid": run, "name": f"run-{number}", "user_id": "bench", "status": "FINISHED"}
            | {"start_time": now + number, "end_time": now + number, "lifecycle_stage": "active", **common}
            | {"experiment_id": int(tracker.experiment_id), "artifact_uri": f"{root}/{run}"}
        )  # fmt: skip
        of_run = {key: value for key, value in tags.items() if key != names.SETTINGS}
        rows.setdefault(tracking.SqlTag, []).extend({"run_uuid": run, "key": k, "value": v} for k, v in of_run.items())
        metrics = [
            {"run_uuid": run, "key": f"{names.METRIC}{name}", "value": float(tags[f"{names.MEASURED}{name}"])}
            | {"timestamp": now, "step": 0, "is_nan": False}
            for name in NUMBERS[:9]
        ]
        for table in (tracking.SqlMetric, tracking.SqlLatestMetric):
            rows.setdefault(table, []).extend(metrics)
        rows.setdefault(tracking.SqlParam, []).extend(
            {"run_uuid": run, "key": key, "value": str(value)}
            for key, value in json.loads(tags[names.SETTINGS]).items()
        )
        rows.setdefault(registry.SqlModelVersion, []).append(
            {"name": MODEL, "version": number, "creation_time": now + number, "last_updated_time": now + number}
            | {"current_stage": "None", "source": f"runs:/{run}/model", "run_id": run, "status": "READY"}
        )
        rows.setdefault(registry.SqlModelVersionTag, []).extend(
            {"name": MODEL, "version": number, "key": key, "value": value} for key, value in tags.items()
        )
    tracker.client.create_registered_model(MODEL, tags={names.PROMOTION_LOG_TAG: str(root / "registry" / MODEL)})
    with create_engine(tracker.uri).begin() as connection:
        for table, some in rows.items():
            connection.execute(insert(table), some)
    tracker.client.set_registered_model_alias(MODEL, names.CHAMPION, str(count // 2))


def _version(rng: random.Random, number: int) -> tuple[str, dict[str, str]]:
    """Return a run's id and the tags of its version."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    teacher = f"{number % 100:016x}"
    tags = {
        names.CONTENT: digest,
        names.ARTIFACT_ID: digest[:16],
        names.ARTIFACT_URI: f"s3://presto/bench/artifacts/{digest[:16]}",
        names.KIND: "generator",
        names.METHOD: rng.choice(["L", "S", "LS"]),
        names.STAGE: "distill-steps",
        names.RUN_ID: digest[:16],
        names.PARENTS: f" {teacher} ",
        f"{names.PARENT}teacher": teacher,
        names.LICENCES: '["CC0-1.0"]',
        f"{names.MEASURED}hardware": "made up",
        names.SETTINGS: json.dumps({key: rng.random() for key in SETTINGS}),
    }
    return digest[:32], tags | {f"{names.MEASURED}{name}": str(20 * rng.random()) for name in NUMBERS[:9]}


def _time_commands(root: str, versions: int, rounds: int) -> list[Comparison]:
    """Measure each command in a running Python, table included, against one second."""
    query = f"fd < 3 and latency_ms < 15 and parent = {7:016x}"
    rare, setting = "fd < 0.2 and latency_ms < 2", f"{SETTINGS[7]} < 0.001"
    calls = {
        f'search "{query}"': lambda: commands.search([query, root], order="fd"),
        f'search "{rare}"': lambda: commands.search([rare, root]),
        f'search "{setting}"': lambda: commands.search([setting, root]),
        "search of everything": lambda: commands.search([root]),
        "show champion": lambda: commands.show("champion", [root]),
        "list": lambda: commands.list_("", [root]),
    }
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        times = alternate(calls, rounds=rounds)
    return [Comparison(f"{name}, {versions} versions", ms, "1 second", 1000) for name, ms in times.items()]


def _time_pulls(folder: Path, rounds: int) -> list[Comparison]:
    """Measure pull, which verifies every file, against boto3, which does not: same bytes, same server."""
    server, _ = local_s3.start(folder / "server")
    try:
        os.environ.update(server.environment())
        storage.create_bucket("bench")
        artifact = _artifact("s3://bench/artifact")
        source, client = open_folder(artifact.uri), create_s3_client(endpoint=server.endpoint)

        def pull() -> None:
            shutil.rmtree(folder / "pulled", ignore_errors=True)
            transfer.pull(artifact, source, folder / "pulled")

        def bare() -> None:
            shutil.rmtree(folder / "bare", ignore_errors=True)
            (folder / "bare").mkdir()
            for name in artifact.manifest["files"]:
                client.download_file("bench", f"artifact/{name}", str(folder / "bare" / name))

        times = alternate({"bare": bare, "pull": pull}, rounds=rounds)
    finally:
        local_s3.stop(folder / "server")
    what = f"boto3's download_file of {FILES} x {FILE_MB} MB"
    return [Comparison(what, times["bare"], "pull of the same (the ratio is throughput)", times["pull"])]


def _artifact(uri: str) -> Artifact:
    rng = np.random.default_rng(0)
    files = {f"w{n}.safetensors": save({"x": rng.random(FILE_MB * 2**17)}) for n in range(FILES)}
    return commit_artifact(
        open_folder(uri),
        kind="generator",
        artifact_id="0" * 16,
        config_yaml="",
        parents={},
        files=files,
        details={},
    )


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Change into a temporary folder; afterwards restore the working directory and the environment."""
    before, environment = Path.cwd(), dict(os.environ)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            yield Path(scratch)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)
