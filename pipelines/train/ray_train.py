"""The one adapter between Ray Train and the training loop: starts, watches and ends a run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipelines.cluster.device import check_reserved
from pipelines.cluster.ray_environment import set_ray_environment
from pipelines.cluster.resources import VALIDATOR_CPUS, same_node_affinity
from pipelines.cluster.session import (
    ClusterError,
    HeadAwayError,
    count_workers,
    find_head,
    min_workers,
    ray_session,
    resources_per_worker,
    training_cpus,
    uses_ray_reader,
)
from pipelines.cluster.shutdown import (
    StoppedError,
    StopRequest,
)
from pipelines.console import console, progress_bar
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.shard_reader import find_damaged_shards, read_with_ray, read_with_threads
from pipelines.tracking.client import TrackedRun
from pipelines.tracking.metric_log import replay_rows
from pipelines.train.driver import DriverMailbox, RunMonitor
from pipelines.train.parallel import make_single_process
from pipelines.train.ray_worker import POLL_S, run_ray_worker
from pipelines.train.spec import TrainSpec
from pipelines.train.sweep_hook import Trial
from pipelines.train.worker import WorkerCallbacks, train_worker
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.config.device_name import AUTO
from presto_core.config.sections import ClusterConfig
from presto_core.config.workers import derive_per_worker
from presto_core.device import resolve_device
from presto_core.errors import UserError

SKIPPED_SHARDS_FILE = "skipped_shards.json"


def launch_training(spec: TrainSpec, run: TrackedRun, trial: Trial | None = None) -> None:
    """Train to the end, on this machine or a cluster, from the last checkpoint if there is one.

    Raises:
        UserError: the first error of a worker.
        ClusterError: the cluster is too small, or kept losing workers.
        HeadAwayError: the head of the cluster does not answer, or was lost.
        StoppedError: the run was asked to stop, and its state is saved.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    stop, workers = StopRequest(), count_workers(spec.config.cluster, in_sweep=bool(trial))
    waits_for = "starting Ray" if workers else "loading"
    bars = progress_bar(spec.stage.name, spec.config.total_steps, waits_for=waits_for)
    with bars as bar, stop.handle_signals():
        replay = partial(replay_rows, spec.open_scratch(), run)
        monitor = RunMonitor(
            run, bar, spec.stage.progress_metrics, spec.stage.health, spec.config.health, stop, replay, trial
        )
        try:
            if workers == 0:
                if not trial and (idle := describe_idle_gpus(spec.config.cluster, torch.cuda.device_count())):
                    console.print(f"{spec.stage.name}: {idle}", style="yellow")
                callbacks = WorkerCallbacks(monitor.on_row, monitor.warn, lambda: stop.reason)
                train_worker(
                    _exclude_damaged_shards(spec, with_ray=False),
                    make_single_process(spec.config.loop, select_device(spec.config.cluster, in_sweep=bool(trial))),
                    callbacks,
                    reader=read_with_threads,
                )
            else:
                _run_in_ray(spec, monitor)
        except StoppedError as error:
            if monitor.unhealthy:
                raise UserError(f"{spec.stage.name} stopped, and its state is saved: {monitor.unhealthy}") from None
            error.exit_code = stop.exit_code
            raise


def select_device(config: ClusterConfig, *, in_sweep: bool) -> torch.device:
    """Where a run without workers trains: `cluster.device`; `auto` is a GPU if there is one, but in a sweep only if its
    trials reserve one.

    Raises:
        DeviceError: the device is not there.
    """
    if config.device != AUTO:
        return resolve_device(config.device, setting="cluster.device")
    may_use_gpu = not in_sweep or config.gpus_per_worker > 0
    return torch.device("cuda" if may_use_gpu and torch.cuda.is_available() else "cpu")


def describe_idle_gpus(config: ClusterConfig, gpus: int) -> str:
    """Return which of this machine's GPUs `num_workers=auto` leaves idle, and how to use them; empty if none."""
    if config.num_workers != AUTO or config.device != AUTO or gpus < 2:
        return ""
    return f"one of {gpus} GPUs trains; cluster.num_workers={gpus} cluster.gpus_per_worker=1 uses all"


def _exclude_damaged_shards(spec: TrainSpec, *, with_ray: bool) -> TrainSpec:
    """The run without its damaged shards, if it may skip them; prints what an epoch holds."""
    dataset = open_dataset(spec.dataset_uri)
    if spec.config.data.damaged_shards == "skip":
        spec = replace(spec, skipped=_find_damaged_shards(spec, dataset, with_ray=with_ray))
    rows, all_rows = (sum(s.rows for s in d.shards("train")) for d in (dataset.exclude_shards(spec.skipped), dataset))
    if spec.skipped:
        console.print(
            f"{spec.stage.name}: {len(spec.skipped)} damaged shards are skipped, {all_rows - rows} of {all_rows} "
            f"rows: {', '.join(spec.skipped)}",
            style="yellow",
        )
    batch = spec.config.section.global_batch_size
    sizes = derive_per_worker(batch, spec.config.cluster, spec.config.loop)
    console.print(
        f"{spec.stage.name}: an epoch is {rows} rows in {rows // batch} batches of {batch}, "
        f"{sizes['batch_size_per_worker']} per worker, accumulated in {sizes['gradient_accumulation_steps']}"
    )
    return spec


def _find_damaged_shards(spec: TrainSpec, dataset: LatentDataset, *, with_ray: bool) -> tuple[str, ...]:
    """Files of damaged shards; searched once per run, so that a resumed run sees the same rows."""
    scratch = spec.open_scratch()
    if not scratch.exists(SKIPPED_SHARDS_FILE):
        files = find_damaged_shards(dataset.uri, dataset.shards("train"), with_ray=with_ray)
        write_bytes(scratch, SKIPPED_SHARDS_FILE, json.dumps(files).encode())
    return tuple(json.loads(read_bytes(scratch, SKIPPED_SHARDS_FILE)))


def _run_in_ray(spec: TrainSpec, monitor: RunMonitor) -> None:
    set_ray_environment()
    import ray
    from ray.train import TrainingFailedError

    config = spec.config.cluster
    check_reserved(config)
    validator_cpus = VALIDATOR_CPUS if spec.config.validation.every else 0
    with ray_session(
        config, cpus=training_cpus(config) + validator_cpus, gpus=min_workers(config) * config.gpus_per_worker
    ):
        head = find_head(config)
        monitor.stop.install_handlers()  # ray.init took the signal handlers for itself
        mailbox = ray.remote(DriverMailbox).options(num_cpus=0, scheduling_strategy=same_node_affinity()).remote()
        fit = _BackgroundThread(_make_trainer(_exclude_damaged_shards(spec, with_ray=True), mailbox).fit)
        try:
            while not fit.done.wait(POLL_S):
                monitor.poll(mailbox)
            monitor.poll(mailbox)
        except ray.exceptions.RayError as error:  # the mailbox is on this process's own node
            message = f"{spec.stage.name} lost its Ray session ({type(error).__name__}); re-run the command to resume"
            raise (HeadAwayError(message, head, was_joined=True) if head else ClusterError(message)) from error
        if monitor.stopped:
            raise StoppedError(monitor.error)
        if isinstance(fit.error, TrainingFailedError | ray.exceptions.RayError):
            message = monitor.error or _extract_cause(fit.error)
            raise ClusterError(f"{spec.stage.name} stopped: {message}. Re-run the command to resume") from fit.error
        if fit.error or monitor.error:
            raise fit.error or UserError(monitor.error)


class _BackgroundThread:
    """A call in its own thread: the main thread stays free to handle signals, which Ray would take."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.done = call, threading.Event()
        self.error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.call()
        except BaseException as error:
            self.error = error
        self.done.set()


def _make_trainer(spec: TrainSpec, mailbox: Any) -> Any:
    """The Ray Train trainer, of a fixed or an elastic number of workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from pipelines.train.elastic import ElasticTrainer
    from pipelines.train.failures import DailyTrainer

    config = spec.config.cluster
    reader = read_with_ray if uses_ray_reader(config) else read_with_threads
    workers = count_workers(config)
    elastic = 0 < config.min_workers < workers
    trainer = (ElasticTrainer if elastic else DailyTrainer)(
        run_ray_worker,
        train_loop_config={"spec": spec, "mailbox": mailbox, "reader": reader},
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, workers) if elastic else workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources_per_worker(config),
        ),
        # Ray keeps only its own bookkeeping here; checkpoints are ours, so that they outlive any Ray session
        run_config=RunConfig(
            name=f"attempt-{time.time_ns():x}",
            storage_path=f"{spec.scratch_uri}/ray",
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    return trainer.with_even_shares(spec.config.section.global_batch_size) if elastic else trainer


def _extract_cause(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps a worker's exception several times."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
