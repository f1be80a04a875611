"""What each Ray Train worker runs: the training function, with callbacks to the driver and telemetry."""

from __future__ import annotations

import logging
import time
from typing import Any

from pipelines.cluster.shutdown import (
    PREEMPTION_REASON,
    SUPERSEDED,
    StoppedError,
    SupersededWorkerError,
    attempt_id,
    install_handlers_in_worker,
    is_preemption_pending,
)
from pipelines.storage.fence import LeaseLostError
from pipelines.train.parallel import make_process_group
from pipelines.train.spec import TrainSpec
from pipelines.train.telemetry import Telemetry
from pipelines.train.worker import WorkerCallbacks, train_worker
from presto_core.errors import UserError
from presto_core.training.async_checkpoint import SaveError
from presto_core.training.divergence import DivergenceError
from presto_core.training.parallel import Parallel

DRIVER_TIMEOUT_S = 60  # for an answer of the driver, before a worker writes
POLL_S = 0.5  # between two exchanges of driver and workers
# all ranks stop in the same step, and a restart would not help
ORDERLY_ERRORS = (
    DivergenceError,
    SaveError,
    StoppedError,
    LeaseLostError,
)


def run_ray_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train.torch

    spec, mailbox, context = config["spec"], config["mailbox"], ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    attempt = attempt_id()
    if rank == 0:
        ray.get(mailbox.begin.remote(attempt))
    try:
        parallel = make_process_group(ray.train.torch.get_device(), spec.config.loop, spec.config.cluster.parallel)
        telemetry = _make_telemetry(spec, parallel)
        callbacks = _make_callbacks(
            mailbox,
            telemetry,
            attempt,
            extra_metrics={"workers": float(workers)} if spec.config.cluster.min_workers else {},
        )
        with telemetry.log_failures():
            train_worker(spec, parallel, callbacks, reader=config["reader"])
    except ORDERLY_ERRORS as error:
        if rank == 0:
            ray.get(mailbox.fail.remote(str(error), attempt, stopped=isinstance(error, StoppedError)))
    except UserError as error:
        ray.get(mailbox.fail.remote(f"worker {rank}: {error}", attempt))
        raise


def _make_telemetry(spec: TrainSpec, parallel: Parallel) -> Telemetry:
    return Telemetry(
        spec.run_id,
        spec.stage.name,
        parallel,
        global_batch_size=spec.config.section.global_batch_size,
        total_steps=spec.config.total_steps,
        row_flops=spec.row_flops,
        bf16=spec.config.loop.autocast == "bf16",
        tf32=spec.config.loop.tf32,
    )


def _make_callbacks(
    mailbox: Any, telemetry: Telemetry, attempt: str, *, extra_metrics: dict[str, float]
) -> WorkerCallbacks:
    """Callbacks of a Ray worker: its own signals and preemption notices, and on rank 0 the driver's requests.

    Args:
        attempt: of the worker group; once a newer one is at work, this one is ignored and writes nothing.
        extra_metrics: added to every row of metrics.
    """
    import ray

    rank, local_stop, last_poll = telemetry.parallel.rank, install_handlers_in_worker(), 0.0

    def stop_reason() -> str:
        nonlocal last_poll
        if not local_stop.reason and time.monotonic() - last_poll > POLL_S:
            last_poll = time.monotonic()
            local_stop.request(
                PREEMPTION_REASON
                if is_preemption_pending()
                else ray.get(mailbox.stop_reason.remote(attempt))
                if rank == 0
                else ""
            )
        return local_stop.reason

    def report(step: int, metrics: dict[str, float]) -> None:
        mailbox.push.remote(step, metrics | extra_metrics if metrics else {}, attempt)
        telemetry.on_row(step, metrics)

    def warn(message: str) -> None:
        mailbox.warn.remote(message, attempt)
        telemetry.log(message, logging.WARNING)

    def check_current_attempt() -> None:
        if not ray.get(mailbox.is_current_attempt.remote(attempt), timeout=DRIVER_TIMEOUT_S):
            raise SupersededWorkerError(f"{SUPERSEDED}, so it writes nothing more")

    return WorkerCallbacks(report, warn, stop_reason, telemetry.on_checkpoint, check_current_attempt)
