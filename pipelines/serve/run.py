"""`presto serve` on this machine or a cluster: starts Ray and Serve, prints where to look, and waits to be stopped."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.cluster.session import ray_session
from pipelines.console import console
from pipelines.registry.names import MODEL_KINDS
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.serve.settings import ServeSettings, check_access
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.client import has_registry
from pipelines.tracking.sqlite_registry import open_for_reading
from pipelines.tracking.uri import tracking_uri
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra

APP = "presto"


def run(settings: ServeSettings, cluster: ClusterConfig) -> None:
    """Serve until interrupted.

    Raises:
        UserError: the port is taken, packages are missing, access is open, or the model cannot be loaded.
    """
    started = time.monotonic()
    with serving(settings, cluster) as url:
        console.print(f"serve: ready after {time.monotonic() - started:.0f} s: {url}", markup=False)
        if settings.log_file:
            console.print(f"serve: one line of JSON per request in {settings.log_file}", markup=False)
        console.print("serve: Ctrl-C stops it", markup=False)
        while True:
            time.sleep(3600)


@contextmanager
def serving(settings: ServeSettings, cluster: ClusterConfig) -> Iterator[str]:
    """Run a block while the service answers at the URL that it gets."""
    check_extra("serve", "presto serve")
    check_access(settings)
    check_model(settings)
    settings = make_paths_absolute(settings).model_copy(update={"port": settings.port or find_free_port(settings.host)})
    check_port(settings)
    cpus = settings.cpus_per_replica * settings.replicas
    with ray_session(cluster, cpus=cpus, gpus=settings.gpus_per_replica * settings.replicas):
        from ray import serve

        from pipelines.serve.app import build

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None})
        try:
            serve.run(build(settings), name=APP, route_prefix="/")
            shown = f"[{settings.host}]" if ":" in settings.host else settings.host
            yield f"http://{shown}:{settings.port}"
        except RuntimeError as error:
            raise UserError(_explain(error)) from error
        finally:
            serve.shutdown()


def make_paths_absolute(settings: ServeSettings) -> ServeSettings:
    """Return the settings with absolute paths: replicas work in other folders."""
    tracking, storage = settings.tracking, settings.storage
    if has_registry(tracking):
        tracking = tracking.model_copy(update={"uri": tracking_uri(tracking)})
    storage = storage.model_copy(update={"root": absolute_uri(storage.root)})
    return settings.model_copy(update={"tracking": tracking, "storage": storage})


def check_model(settings: ServeSettings) -> None:
    """Check that the model that is named is there, before Ray starts.

    Raises:
        UserError: it is not registered, is missing, or is no model.
    """
    if not settings.model or resolve_pretrained(settings.model):
        return
    artifact = resolve(open_for_reading(settings.tracking), settings.model, absolute_uri(settings.storage.root))
    if artifact.kind not in MODEL_KINDS:
        raise UserError(f"--model {settings.model} is a {artifact.kind}; name a model")


def check_port(settings: ServeSettings) -> None:
    """Check that the port is free, before Ray takes half a minute to find out."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            raise UserError(
                f"--host {settings.host} --port {settings.port}: {error.strerror or error}; choose another with --port"
            ) from None


def find_free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host if ":" not in host else "127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _explain(error: RuntimeError) -> str:
    """Return what made a deployment fail, without the frames of Ray."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line and not line.startswith("File ")]
    return f"the service did not start: {(causes or lines or ['unknown'])[-1][:500]}; fix it and run presto serve again"
