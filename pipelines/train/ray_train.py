"""The one adapter between Ray Train and the training loop: where a job is described, placed, watched and finished."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from pipelines.cluster.resources import JUDGE_CPUS, beside_this_process
from pipelines.cluster.session import (
    ClusterError,
    least_workers,
    ray_session,
    reads_with_ray,
    resources_per_worker,
    training_cpus,
)
from pipelines.cluster.shutdown import (
    PREEMPTED,
    TAKEN_OVER,
    Stop,
    StoppedError,
    TakenOverError,
    listen_in_worker,
    own_attempt,
    preempted,
)
from pipelines.console import console, progress_bar
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.shard_reader import (
    damaged_shards,
    read_here,
    read_with_ray,
)
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import TrackedRun
from pipelines.tracking.metric_log import report_missed
from pipelines.train.driver import Board, Watcher
from pipelines.train.parallel import in_group, in_process
from pipelines.train.sweep_hook import Trial
from pipelines.train.telemetry import Telemetry
from pipelines.train.worker import (
    Job,
    Line,
    work,
)
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.config.schema import per_worker
from presto_core.errors import UserError
from presto_core.training.async_checkpoint import SaveError
from presto_core.training.divergence import DivergenceError
from presto_core.training.parallel import Parallel

SKIPPED = "skipped_shards.json"
ANSWER_S = 60  # for a word of the command, before a worker writes
POLL_S = 0.5  # between two looks of command and workers at what the other side says
ENDING = (DivergenceError, SaveError, StoppedError)  # all ranks stop in the same step, and a restart would not help


def run_job(job: Job, run: TrackedRun, trial: Trial | None = None) -> None:
    """Train to the end, on this machine or a cluster, from the last checkpoint if there is one.

    Raises:
        UserError: the first sentence a worker failed with.
        ClusterError: the cluster is too small, or kept losing workers.
        StoppedError: the run was told to end, and its state is saved.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    stop = Stop()
    with progress_bar(job.label, job.total_steps) as bar, stop.listening():
        missed = partial(report_missed, open_folder(job.scratch_uri), run)
        watcher = Watcher(run, bar, job.watch, job.expected, job.health, stop, missed, trial)
        try:
            if job.cluster.num_workers == 0:
                line = Line(watcher.receive, watcher.warn, lambda: stop.reason)
                work(_checked(job), in_process(job.loop), line, reader=read_here)
            else:
                _run_in_ray(job, watcher)
        except StoppedError:
            if watcher.unhealthy:
                raise UserError(f"{job.label} stopped, and its state is saved: {watcher.unhealthy}") from None
            raise


def _checked(job: Job) -> Job:
    """The job, knowing which damaged shards it does without; says what an epoch holds."""
    dataset = open_dataset(job.dataset_uri)
    if job.data.damaged_shards == "skip":
        job = replace(job, skipped=_known_damaged(job, dataset))
    rows, all_rows = (sum(s.rows for s in d.shards("train")) for d in (dataset.without(job.skipped), dataset))
    if job.skipped:
        console.print(
            f"{job.label}: {len(job.skipped)} damaged shards are left out, {all_rows - rows} of {all_rows} rows: "
            f"{', '.join(job.skipped)}",
            style="yellow",
        )
    share = per_worker(job.global_batch_size, job.cluster, job.loop)
    console.print(
        f"{job.label}: an epoch is {rows} rows in {rows // job.global_batch_size} batches of {job.global_batch_size}, "
        f"{share['batch_size_per_worker']} a worker, accumulated in {share['gradient_accumulation_steps']}"
    )
    return job


def _known_damaged(job: Job, dataset: LatentDataset) -> tuple[str, ...]:
    """Files of damaged shards; found once a run, so that a resumed one goes on with the same rows."""
    scratch = open_folder(job.scratch_uri)
    if not scratch.exists(SKIPPED):
        found = damaged_shards(dataset.uri, dataset.shards("train"), with_ray=job.cluster.num_workers > 0)
        write_bytes(scratch, SKIPPED, json.dumps(found).encode())
    return tuple(json.loads(read_bytes(scratch, SKIPPED)))


def _run_in_ray(job: Job, watcher: Watcher) -> None:
    import ray
    from ray.train import TrainingFailedError

    config = job.cluster
    judging = JUDGE_CPUS if job.validation.every else 0
    with ray_session(config, cpus=training_cpus(config) + judging, gpus=least_workers(config) * config.gpus_per_worker):
        watcher.stop.listen()  # ray.init took the signal handlers for itself
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=beside_this_process()).remote()
        fit = _InBackground(_trainer(_checked(job), board).fit)
        try:
            while not fit.done.wait(POLL_S):
                watcher.poll(board)
            watcher.poll(board)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"{job.label} lost its Ray session ({type(error).__name__}); run the same command to go on"
            ) from error
        if watcher.stopped:
            raise StoppedError(watcher.error)
        if isinstance(fit.error, TrainingFailedError | ray.exceptions.RayError):
            sentence = watcher.error or _first_line(fit.error)
            raise ClusterError(f"{job.label} stopped: {sentence}. Run the same command to go on") from fit.error
        if fit.error or watcher.error:
            raise fit.error or UserError(watcher.error)


class _InBackground:
    """A call in a thread of its own: the main thread stays free to hear signals, which Ray would take."""

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


def _trainer(job: Job, board: Any) -> Any:
    """The Ray Train job, of a fixed number of workers or of an elastic one."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.train.elastic import ElasticTrainer

    config = job.cluster
    reader = read_with_ray if reads_with_ray(config) else read_here
    elastic = 0 < config.min_workers < config.num_workers
    trainer = (ElasticTrainer if elastic else TorchTrainer)(
        _ray_worker,
        train_loop_config={"job": job, "board": board, "reader": reader},
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if elastic else config.num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources_per_worker(config),
        ),
        # Ray keeps only its own bookkeeping here; checkpoints are ours, so that they outlive any Ray session
        run_config=RunConfig(
            name=f"attempt-{time.time_ns():x}",
            storage_path=f"{job.scratch_uri}/ray",
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    return trainer.with_even_shares(job.global_batch_size) if elastic else trainer


def _ray_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train.torch

    job, board, context = config["job"], config["board"], ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    attempt = own_attempt()
    if rank == 0:
        ray.get(board.begin.remote(attempt))
    try:
        parallel = in_group(ray.train.torch.get_device(), job.loop, job.cluster.parallel)
        telemetry = _telemetry(job, parallel)
        line = _line_of(board, telemetry, attempt, told={"workers": float(workers)} if job.cluster.min_workers else {})
        with telemetry.failures():
            work(job, parallel, line, reader=config["reader"])
    except ENDING as error:
        if rank == 0:
            ray.get(board.fail.remote(str(error), attempt, stopped=isinstance(error, StoppedError)))
    except UserError as error:
        ray.get(board.fail.remote(f"worker {rank}: {error}", attempt))
        raise


def _telemetry(job: Job, parallel: Parallel) -> Telemetry:
    return Telemetry(
        job.run_id,
        job.label,
        parallel,
        global_batch_size=job.global_batch_size,
        total_steps=job.total_steps,
        row_flops=job.row_flops,
        bf16=job.loop.autocast == "bf16",
    )


def _line_of(board: Any, telemetry: Telemetry, attempt: str, *, told: dict[str, float]) -> Line:
    """Of a Ray worker: its own SIGTERM and notices, and, now and then on rank 0, what the command asks for.

    Args:
        attempt: the worker group's; once another is at work, this one is not heard and writes nothing.
        told: goes with every row of metrics.
    """
    import ray

    rank, own, looked_at = telemetry.parallel.rank, listen_in_worker(), 0.0

    def stop_reason() -> str:
        nonlocal looked_at
        if not own.reason and time.monotonic() - looked_at > POLL_S:
            looked_at = time.monotonic()
            own.ask(PREEMPTED if preempted() else ray.get(board.stop_reason.remote(attempt)) if rank == 0 else "")
        return own.reason

    def report(step: int, metrics: dict[str, float]) -> None:
        board.push.remote(step, metrics | told if metrics else {}, attempt)
        telemetry.row(step, metrics)

    def warn(sentence: str) -> None:
        board.warn.remote(sentence, attempt)
        telemetry.say(sentence, logging.WARNING)

    def require_at_work() -> None:
        if not ray.get(board.is_at_work.remote(attempt), timeout=ANSWER_S):
            raise TakenOverError(f"{TAKEN_OVER}, so it writes nothing more")

    return Line(report, warn, stop_reason, telemetry.checkpointed, require_at_work)


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps a worker's exception several times."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
