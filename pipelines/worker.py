"""The one adapter between Ray Train and the training loop: where a job is described, placed, watched and finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipelines.cluster import ClusterError, least_workers, ray_session, resources_per_worker, training_cpus
from pipelines.dataset import LatentDataset, open_dataset, stream
from pipelines.parallel import in_group, in_process
from pipelines.progress import console, progress_bar
from pipelines.reading import damaged_shards, read_here, read_with_ray
from pipelines.storage import open_folder
from pipelines.tracking import TrackedRun
from pipelines.watch import Board, Watcher
from presto_core.config.data import DataConfig
from presto_core.config.errors import UserError
from presto_core.config.schema import per_worker
from presto_core.config.sections import ClusterConfig, LoopConfig
from presto_core.metrics.health import Expected
from presto_core.registry.store import read_bytes, write_bytes
from presto_core.training.checkpoint import load_checkpoint, save_checkpoint
from presto_core.training.loop import Hooks, train
from presto_core.training.optim import DivergenceError
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, TrainState

SKIPPED = "skipped_shards.json"


@dataclass(frozen=True)
class Job:
    """All a worker needs to take part in a run; holds URIs and settings, never credentials or tensors.

    Attributes:
        label: what the progress bar says.
        build: makes the algorithm: (dataset, parallel, autocast dtype) -> Algorithm; a module-level callable.
        finish: rank 0 turns the final state into the artifact's files and commits them.
        caption_dropout: probability that a row's conditions are withheld.
        watch: metrics the progress line shows.
        skipped: shards that are left out because they are damaged.
    """

    label: str
    build: Callable[[LatentDataset, Parallel, torch.dtype | None], Algorithm]
    finish: Callable[[LatentDataset, TrainState], None]
    dataset_uri: str
    scratch_uri: str
    seed: int
    global_batch_size: int
    total_steps: int
    loop: LoopConfig
    cluster: ClusterConfig
    data: DataConfig
    watch: tuple[str, ...]
    caption_dropout: float = 0.0
    expected: dict[str, Expected] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def run_job(job: Job, run: TrackedRun) -> None:
    """Train to the end, on this machine or a cluster, from the last checkpoint if there is one.

    Raises:
        UserError: the first sentence a worker failed with.
        ClusterError: the cluster is too small, or kept losing workers.
    """
    with progress_bar(job.label, job.total_steps) as bar:
        watcher = Watcher(run, bar, watch=job.watch, expected=job.expected)
        if job.cluster.num_workers == 0:
            _work(_checked(job), in_process(job.loop), watcher.receive, reader=read_here)
            return
        config = job.cluster
        with ray_session(config, cpus=training_cpus(config), gpus=least_workers(config) * config.gpus_per_worker):
            _run_with_ray_train(_checked(job), watcher)


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


def _run_with_ray_train(job: Job, watcher: Watcher) -> None:
    import ray
    from ray.train import TrainingFailedError

    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=_beside_this_command()).remote()
    trainer = _trainer(job, board)
    with watcher.following(board):
        try:
            trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            watcher.poll(board)
            sentence = watcher.error or _first_line(error)
            raise ClusterError(f"{job.label} stopped: {sentence}. Run the same command to go on") from error
    if watcher.error:
        raise UserError(watcher.error)


def _beside_this_command() -> Any:
    """So that no other node's death ends an actor."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _trainer(job: Job, board: Any) -> Any:
    """The Ray Train job, of a fixed number of workers or of an elastic one."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.elastic import ElasticTrainer

    config = job.cluster
    elastic = 0 < config.min_workers < config.num_workers
    trainer = (ElasticTrainer if elastic else TorchTrainer)(
        _ray_worker,
        train_loop_config={"job": job, "board": board},
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

    def report(step: int, metrics: dict[str, float]) -> None:
        elastic = {"workers": workers} if metrics and job.cluster.min_workers else {}
        board.push.remote(step, metrics | elastic)

    try:
        reader = read_with_ray if job.cluster.reader == "ray" else read_here
        _work(job, in_group(ray.train.torch.get_device(), job.loop, job.cluster.parallel), report, reader=reader)
    except DivergenceError as error:
        # every rank stops here together, and a restart would diverge again: end the run without one
        ray.get(board.fail.remote(str(error)))
    except UserError as error:
        ray.get(board.fail.remote(f"worker {rank}: {error}"))
        raise


def _work(job: Job, parallel: Parallel, report: Callable[[int, dict[str, float]], None], *, reader: Any) -> None:
    """Build, resume, train, save, finish: the same on every rank, in Ray or out of it."""
    torch.set_num_threads(job.cluster.torch_threads)
    dataset = open_dataset(job.dataset_uri).without(job.skipped)
    torch.manual_seed(job.seed)  # networks are initialised alike on all ranks
    algorithm = job.build(dataset, parallel, torch.bfloat16 if job.loop.autocast == "bf16" else None)
    checkpoints = open_folder(job.scratch_uri).child("checkpoints")
    load_checkpoint(checkpoints, algorithm.state)
    main = parallel.rank == 0

    def checkpoint() -> None:
        if main:
            save_checkpoint(checkpoints, algorithm.state, keep=job.loop.keep_checkpoints)
        elif algorithm.state.sharded:
            algorithm.state.state_dict()  # hands this worker's parts to rank 0

    batches = stream(
        dataset,
        seed=job.seed,
        cursor=algorithm.state.cursor,
        global_batch_size=job.global_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        device=parallel.device,
        reader=reader,
        crop_frames=job.data.crop_frames,
        caption_dropout=job.caption_dropout,
    )
    if main:
        report(algorithm.state.total_step, {})
    hooks = Hooks(log=report if main else (lambda step, metrics: None), checkpoint=checkpoint)
    with closing(batches):
        train(algorithm, batches, seed=job.seed, config=job.loop, parallel=parallel, hooks=hooks)
    for ema in algorithm.state.emas.values():
        ema.gather()
    if main:
        job.finish(dataset, algorithm.state)


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps a worker's exception several times."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
