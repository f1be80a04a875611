"""What every rank of a training run does, in Ray or out of it: build, resume, train, save, finish."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pipelines.cluster.shutdown import StoppedError
from pipelines.data.dataset import (
    LatentDataset,
    open_dataset,
    stream,
)
from pipelines.data.shard_cache import ShardCache
from pipelines.evaluate.validator import judge_of
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.metric_log import (
    ROWS,
    Journal,
    Row,
)
from pipelines.train.validation import Snapshots, Validation
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.run_layout import CHECKPOINTS
from presto_core.artifacts.store import StoreError
from presto_core.config.data import DataConfig
from presto_core.config.sections import (
    ClusterConfig,
    HealthConfig,
    LoopConfig,
)
from presto_core.config.validation import ValidationConfig
from presto_core.models.model_card import ModelCard
from presto_core.training.async_checkpoint import CheckpointWriter
from presto_core.training.checkpoint import delete_incomplete, load_checkpoint
from presto_core.training.health import Expected
from presto_core.training.loop import Hooks, train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, TrainState


@dataclass(frozen=True)
class Job:
    """All a worker needs to take part in a run; holds URIs and settings, never credentials or tensors.

    Attributes:
        label: what the progress bar says.
        build: makes the algorithm: (dataset, parallel, autocast dtype) -> Algorithm; a module-level callable.
        finish: rank 0 turns the final state into the artifact's files and commits them, with details for its manifest.
        kind: of that artifact.
        card: what it says of the model.
        caption_dropout: probability that a row's conditions are withheld.
        updates: of the network that is shipped; where each step is one, total_steps.
        watch: metrics the progress line shows.
        skipped: shards that are left out because they are damaged.
        row_flops: model FLOPs of a row of the batch, a mean over steps; 0 is not known.
    """

    label: str
    build: Callable[[LatentDataset, Parallel, torch.dtype | None], Algorithm]
    finish: Callable[[LatentDataset, TrainState, dict[str, Any]], None]
    kind: str
    card: Callable[[LatentDataset], ModelCard]
    dataset_uri: str
    scratch_uri: str
    seed: int
    global_batch_size: int
    total_steps: int
    updates: int
    loop: LoopConfig
    cluster: ClusterConfig
    data: DataConfig
    watch: tuple[str, ...]
    caption_dropout: float = 0.0
    expected: dict[str, Expected] = field(default_factory=dict)
    health: HealthConfig = field(default_factory=HealthConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    skipped: tuple[str, ...] = ()
    row_flops: float = 0.0

    @property
    def run_id(self) -> str:
        return self.scratch_uri.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Line:
    """A rank's line to the command that waits.

    Attributes:
        report: a row of metrics; without any, where the run starts. Only rank 0 speaks.
        warn: a sentence to show.
        stop_reason: why the run should end early, as far as this rank knows; empty where it should not.
        saved: the step of each checkpoint once it is whole; only rank 0 speaks.
        require_at_work: raises where other workers have taken over; asked before anything is written.
    """

    report: Callable[[int, dict[str, float]], None]
    warn: Callable[[str], None]
    stop_reason: Callable[[], str]
    saved: Callable[[int], None] = lambda step: None
    require_at_work: Callable[[], None] = lambda: None


def work(job: Job, parallel: Parallel, line: Line, *, reader: Any) -> None:
    """Build, resume, train, save, finish: the same on every rank, in Ray or out of it."""
    torch.set_num_threads(job.cluster.torch_threads)
    dataset = open_dataset(job.dataset_uri).without(job.skipped)
    torch.manual_seed(job.seed)  # networks are initialised alike on all ranks
    algorithm = job.build(dataset, parallel, torch.bfloat16 if job.loop.autocast == "bf16" else None)
    state, main, scratch = algorithm.state, parallel.rank == 0, open_folder(job.scratch_uri)
    _resume(scratch.child(CHECKPOINTS), state, parallel, line)
    batches = stream(
        dataset,
        seed=job.seed,
        cursor=state.cursor,
        global_batch_size=job.global_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        device=parallel.device,
        reader=reader,
        cache=ShardCache.of(job.cluster),
        crop_frames=job.data.crop_frames,
        caption_dropout=job.caption_dropout,
    )
    writer = CheckpointWriter(
        scratch.child(CHECKPOINTS),
        last_good=state.total_step,
        keep=job.loop.keep_checkpoints,
        every=job.loop.keep_every,
        saved=line.saved,
        require_at_work=line.require_at_work,
    )
    with closing(batches), writer, _validating(job, dataset, state, scratch, main=main) as validation:
        hooks = _hooks(state, writer, Journal(scratch.child(ROWS)), line, validation, main=main)
        train(algorithm, batches, seed=job.seed, config=job.loop, parallel=parallel, hooks=hooks)
        writer.finish()
        if validation and main:
            _report(validation.finish(), line)
    if state.total_step < algorithm.total_steps:
        raise StoppedError(
            f"{job.label} stopped at step {state.total_step} of {algorithm.total_steps}, since "
            f"{line.stop_reason() or 'a worker was told to end'}; its state is saved, run the same command to go on"
        )
    for ema in state.emas.values():
        ema.gather()
    if main:
        line.require_at_work()
        job.finish(dataset, state, _validated(job, state, validation) if validation else {})


def _validating(
    job: Job, dataset: LatentDataset, state: TrainState, scratch: Folder, *, main: bool
) -> AbstractContextManager[Validation | None]:
    """The run's validation, with what an earlier life of it left; none where none is wanted."""
    if not job.validation.every:
        return nullcontext()
    (ema,) = state.emas.values()
    snapshots = Snapshots(scratch, job.kind, job.card(dataset).to_dict())
    judge = judge_of(job.validation, dataset.uri, torch_threads=job.cluster.torch_threads) if main else _no_judge
    validation = Validation(job.validation, snapshots, judge, ema, last_update=job.updates, main=main)
    if main:
        validation.resume(state.total_step)
    return validation


def _no_judge(uri: str) -> dict[str, float]:
    raise AssertionError("only rank 0 asks")


def _validated(job: Job, state: TrainState, validation: Validation) -> dict[str, Any]:
    """What the manifest says of validations; where the best weights are wanted, they take the place of the last."""
    (ema,) = state.emas.values()
    kept = job.updates
    if job.validation.keep == "best":
        kept, weights = validation.best()
        ema.network.load_state_dict(weights)
    rows = [row for _, row in sorted(validation.rows.items())]
    return {"validation": {"judged": job.validation.judged_alike(), "kept_update": kept, "rows": rows}}


def _report(rows: list[Row], line: Line) -> None:
    for step, metrics in rows:
        line.report(step, metrics)


def _resume(checkpoints: Folder, state: TrainState, parallel: Parallel, line: Line) -> None:
    """Load the newest checkpoint on every rank, and say where the run starts."""
    main = parallel.rank == 0
    if main:
        delete_incomplete(checkpoints)
    load_checkpoint(checkpoints, state, line.warn if main else lambda sentence: None)
    mean = float(parallel.average(torch.tensor(float(state.total_step), device=parallel.device)))
    if mean != state.total_step:
        raise StoreError(f"workers found different checkpoints in {checkpoints.uri}; see that all of them can read it")
    if main:
        line.report(state.total_step, {})


def _hooks(
    state: TrainState,
    writer: CheckpointWriter,
    journal: Journal,
    line: Line,
    validation: Validation | None,
    *,
    main: bool,
) -> Hooks:
    """What the loop calls: rank 0 reports, saves and listens to the command; every rank hears its own signals."""

    def stepped() -> None:
        if validation:
            validation.stepped(state)
            if main:
                _report(validation.take(), line)

    def log(step: int, metrics: dict[str, float]) -> None:
        if main:
            if state.generator_step:
                metrics = metrics | {"generator_step": float(state.generator_step)}
            journal.add(step, metrics)
            line.report(step, metrics)

    def first(total_step: int, rows: list[Row]) -> None:
        journal.write(total_step, rows)
        if validation:
            validation.settle_stored()

    def checkpoint() -> None:
        whole = state.state_dict()  # on every rank: where networks are sharded, it is gathered from all
        if main:
            writer.save(whole, first=partial(first, state.total_step, journal.take()))

    return Hooks(stepped, log, checkpoint, should_stop=lambda: writer.failed or bool(line.stop_reason()))
