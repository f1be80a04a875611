"""Checks of this machine and its Ray cluster for `presto doctor`: each returns what it found or raises the fix."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib import import_module, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from urllib3.exceptions import HTTPError

from pipelines.cluster.session import cluster_address, count_workers, ray_session
from pipelines.stages.resources import SkippedError, check_stage_fits
from pipelines.storage.local_s3 import find_program
from pipelines.storage.s3_clients import CONNECT_TIMEOUT_S, create_http_pool
from pipelines.storage.s3_settings import S3Settings, load_settings
from presto_core.config.sections import ClusterConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import EXTRAS, check_extra

MIN_FREE_BYTES = 2**30
MAX_SKEW_S = 300  # S3 refuses signatures that are 15 minutes off; a clock this far off keeps drifting


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> str:
    """Check the interpreter's version against the package's requirement.

    Raises:
        UserError: Python is too old.
    """
    installed, required = ".".join(map(str, version)), metadata.metadata("presto-distill")["Requires-Python"]
    if not SpecifierSet(required).contains(installed):
        raise UserError(
            f"Python is {installed}, but Presto needs {required}; create a new environment with such a Python"
        )
    return f"{installed} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def check_torch_and_gpus(cluster: ClusterConfig) -> str:
    """Check PyTorch, and the GPUs and NCCL that workers on this machine use.

    Raises:
        UserError: GPUs are requested and PyTorch sees none, or has no NCCL for several workers.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    summary = f"{torch.__version__}, {f'CUDA {torch.version.cuda}, {gpus} GPUs' if gpus else 'no GPU'}"
    if not cluster.gpus_per_worker:
        return f"{summary}, none requested (cluster.gpus_per_worker=0): workers use gloo, nccl is not needed"
    if cluster_address(cluster):
        request = f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}"
        return f"{summary}; {request} requests GPUs of the joined cluster"
    if not gpus:
        raise UserError(
            f"cluster.gpus_per_worker={cluster.gpus_per_worker:g} requests GPUs and torch {torch.__version__} sees "
            "none; install an NVIDIA driver and PyTorch's CUDA build, or set cluster.gpus_per_worker=0"
        )
    workers = count_workers(cluster)
    if workers < 2:
        return f"{summary}; nccl is not needed for {max(workers, 1)} worker"
    if not torch.distributed.is_nccl_available():
        raise UserError(
            f"torch {torch.__version__} has no nccl, which cluster.num_workers={workers} workers "
            "with GPUs need; install PyTorch's CUDA build for Linux"
        )
    return f"{summary}, nccl {'.'.join(map(str, torch.cuda.nccl.version()))}"


@dataclass
class RayCheck:
    """Checks of a command's Ray session: opens it once, then compares it with what each stage requests.

    Attributes:
        cluster: settings of the session.
        nodes: resources of each live node; empty until `connect`.
    """

    cluster: ClusterConfig
    nodes: list[dict[str, float]] = field(default_factory=list)

    def connect(self) -> str:
        """Start Ray or join it, as a stage does, and read its nodes.

        Raises:
            ClusterError: Ray cannot be started, or does not answer.
        """
        with ray_session(self.cluster, cpus=0):
            import ray

            self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            how = (
                f"joined {cluster_address(self.cluster)}"
                if cluster_address(self.cluster)
                else "started on this machine and stopped"
            )
            total = ray.cluster_resources()
            cpus, gpus, count = total.get("CPU", 0), total.get("GPU", 0), len(self.nodes)
            return f"{ray.__version__}, {how}: {count} node{'s'[: count > 1]}, {cpus:g} CPUs, {gpus:g} GPUs"

    def check_fits(self, stage: str) -> str:
        """Check that a stage's workers fit on the nodes; see `check_stage_fits`."""
        return check_stage_fits(stage, self.cluster, self.nodes)


def check_free_space(path: Path, min_bytes: int = MIN_FREE_BYTES) -> str:
    """Check the free space of the disk that holds a path, which need not exist.

    Raises:
        UserError: it is less than `min_bytes`.
    """
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(existing)
    if usage.free < min_bytes:
        raise UserError(
            f"the disk of {path} has {usage.free / 2**30:.1f} GiB left, less than {min_bytes / 2**30:.0f}; "
            "free some space, or run in a folder on another disk"
        )
    return f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {path}"


def check_package(module: str, distribution: str, purpose: str, fix: str) -> str:
    """Check that a package which only some uses need is installed.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import_module(module)
    except ImportError:
        raise UserError(f"{distribution}, which {purpose} needs, is not installed; {fix}") from None
    return f"{distribution} {metadata.version(distribution)}, for {purpose}"


def check_extra_packages(extra: str, purpose: str) -> str:
    """Check that the packages of an extra which only some commands need are installed.

    Raises:
        UserError: a package is not installed.
    """
    check_extra(extra, purpose)
    return f"{', '.join(f'{name} {metadata.version(name)}' for name in EXTRAS[extra].values())}, for {purpose}"


def check_s3_program() -> str:
    """Check for the program behind `presto s3 start`; raises UserError if it is not installed."""
    return f"{find_program()}, for presto s3 start and presto demo"


def check_clock(root: str) -> str:
    """Compare this machine's clock with the Date header of the object store.

    Raises:
        UserError: they differ too much, or the store does not answer.
        SkippedError: no object store is used, or it sends no Date.
    """
    if not root.startswith("s3://"):
        raise SkippedError("not needed: storage.root is a folder")
    settings = load_settings()
    url, date = settings.url, _fetch_date(settings)
    if not date:
        raise SkippedError(f"{url} sends no Date")
    skew_s = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew_s) > MAX_SKEW_S:
        raise UserError(
            f"this machine's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} that of {url}, "
            "which refuses requests signed at a wrong time; set the clock, or synchronize it by NTP"
        )
    return f"{abs(skew_s):.0f} s apart from {url}"  # Date has whole seconds


def _fetch_date(settings: S3Settings) -> str:
    try:
        response = create_http_pool(settings).request(
            "HEAD", settings.url, timeout=CONNECT_TIMEOUT_S, retries=False, redirect=False
        )
    except HTTPError as error:
        raise UserError(
            f"{settings.url} does not answer: {error}; start it (local server: presto s3 start), or correct "
            "AWS_ENDPOINT_URL"
        ) from None
    return str(response.headers.get("Date", ""))  # an error response has a Date too


def list_sources(config: StageConfig) -> list[str]:
    return [str(uri) for uri in config.model_dump()["ingest"]["source"]]


def get_codec_kind(config: StageConfig) -> str:
    return str(config.model_dump()["codec"]["kind"])
