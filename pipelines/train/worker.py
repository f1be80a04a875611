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
    stream_batches,
)
from pipelines.data.shard_cache import ShardCache
from pipelines.evaluate.validator import get_validator
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.metric_log import (
    METRICS_FOLDER,
    MetricLog,
    Row,
)
from pipelines.train.validation import AsyncValidation, WeightSnapshots
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
from presto_core.training.health import HealthRange
from presto_core.training.loop import Hooks, train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, TrainState


@dataclass(frozen=True)
class TrainSpec:
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
    expected: dict[str, HealthRange] = field(default_factory=dict)
    health: HealthConfig = field(default_factory=HealthConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    skipped: tuple[str, ...] = ()
    row_flops: float = 0.0

    @property
    def run_id(self) -> str:
        return self.scratch_uri.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class WorkerCallbacks:
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
    on_checkpoint: Callable[[int], None] = lambda step: None
    check_current_attempt: Callable[[], None] = lambda: None


def train_worker(spec: TrainSpec, parallel: Parallel, callbacks: WorkerCallbacks, *, reader: Any) -> None:
    """Build, resume, train, save, finish: the same on every rank, in Ray or out of it."""
    torch.set_num_threads(spec.cluster.torch_threads)
    dataset = open_dataset(spec.dataset_uri).exclude_shards(spec.skipped)
    torch.manual_seed(spec.seed)  # networks are initialised alike on all ranks
    algorithm = spec.build(dataset, parallel, torch.bfloat16 if spec.loop.autocast == "bf16" else None)
    state, main, scratch = algorithm.state, parallel.rank == 0, open_folder(spec.scratch_uri)
    _resume(scratch.child(CHECKPOINTS), state, parallel, callbacks)
    batches = stream_batches(
        dataset,
        seed=spec.seed,
        cursor=state.cursor,
        global_batch_size=spec.global_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        device=parallel.device,
        reader=reader,
        cache=ShardCache.from_config(spec.cluster),
        crop_frames=spec.data.crop_frames,
        caption_dropout=spec.caption_dropout,
    )
    writer = CheckpointWriter(
        scratch.child(CHECKPOINTS),
        last_saved_step=state.total_step,
        keep=spec.loop.keep_checkpoints,
        every=spec.loop.keep_every,
        on_saved=callbacks.on_checkpoint,
        check_current_attempt=callbacks.check_current_attempt,
    )
    with closing(batches), writer, _open_validation(spec, dataset, state, scratch, main=main) as validation:
        hooks = _make_hooks(state, writer, MetricLog(scratch.child(METRICS_FOLDER)), callbacks, validation, main=main)
        train(algorithm, batches, seed=spec.seed, config=spec.loop, parallel=parallel, hooks=hooks)
        writer.finish()
        if validation and main:
            _report_rows(validation.finish(), callbacks)
    if state.total_step < algorithm.total_steps:
        raise StoppedError(
            f"{spec.label} stopped at step {state.total_step} of {algorithm.total_steps}, since "
            f"{callbacks.stop_reason() or 'a worker was told to end'}; its state is saved, re-run the command to resume"
        )
    for ema in state.emas.values():
        ema.gather()
    if main:
        callbacks.check_current_attempt()
        spec.finish(dataset, state, _conclude_validation(spec, state, validation) if validation else {})


def _open_validation(
    spec: TrainSpec, dataset: LatentDataset, state: TrainState, scratch: Folder, *, main: bool
) -> AbstractContextManager[AsyncValidation | None]:
    """The run's validation, with what an earlier life of it left; none where none is wanted."""
    if not spec.validation.every:
        return nullcontext()
    (ema,) = state.emas.values()
    snapshots = WeightSnapshots(scratch, spec.kind, spec.card(dataset).to_dict())
    validator = (
        get_validator(spec.validation, dataset.uri, torch_threads=spec.cluster.torch_threads)
        if main
        else _unreachable_validator
    )
    validation = AsyncValidation(spec.validation, snapshots, validator, ema, last_update=spec.updates, main=main)
    if main:
        validation.resume(state.total_step)
    return validation


def _unreachable_validator(uri: str) -> dict[str, float]:
    raise AssertionError("only rank 0 asks")


def _conclude_validation(spec: TrainSpec, state: TrainState, validation: AsyncValidation) -> dict[str, Any]:
    """What the manifest says of validations; where the best weights are wanted, they take the place of the last."""
    (ema,) = state.emas.values()
    kept_update = spec.updates
    if spec.validation.keep == "best":
        kept_update, weights = validation.load_best()
        ema.network.load_state_dict(weights)
    rows = [row for _, row in sorted(validation.rows.items())]
    return {"validation": {"judged": spec.validation.comparison_settings(), "kept_update": kept_update, "rows": rows}}


def _report_rows(rows: list[Row], callbacks: WorkerCallbacks) -> None:
    for step, metrics in rows:
        callbacks.report(step, metrics)


def _resume(checkpoints: Folder, state: TrainState, parallel: Parallel, callbacks: WorkerCallbacks) -> None:
    """Load the newest checkpoint on every rank, and say where the run starts."""
    main = parallel.rank == 0
    if main:
        delete_incomplete(checkpoints)
    load_checkpoint(checkpoints, state, callbacks.warn if main else lambda message: None)
    mean_step = float(parallel.average(torch.tensor(float(state.total_step), device=parallel.device)))
    if mean_step != state.total_step:
        raise StoreError(f"workers found different checkpoints in {checkpoints.uri}; see that all of them can read it")
    if main:
        callbacks.report(state.total_step, {})


def _make_hooks(
    state: TrainState,
    writer: CheckpointWriter,
    metric_log: MetricLog,
    callbacks: WorkerCallbacks,
    validation: AsyncValidation | None,
    *,
    main: bool,
) -> Hooks:
    """What the loop calls: rank 0 reports, saves and listens to the command; every rank hears its own signals."""

    def after_step() -> None:
        if validation:
            validation.after_step(state)
            if main:
                _report_rows(validation.pop_rows(), callbacks)

    def log(step: int, metrics: dict[str, float]) -> None:
        if main:
            if state.generator_step:
                metrics = metrics | {"generator_step": float(state.generator_step)}
            metric_log.add(step, metrics)
            callbacks.report(step, metrics)

    def store_rows(total_step: int, rows: list[Row]) -> None:
        metric_log.write(total_step, rows)
        if validation:
            validation.wait_stored()

    def save_checkpoint() -> None:
        state_dict = state.state_dict()  # on every rank: where networks are sharded, it is gathered from all
        if main:
            writer.save(state_dict, before_commit=partial(store_rows, state.total_step, metric_log.pop_rows()))

    return Hooks(
        after_step, log, save_checkpoint, should_stop=lambda: writer.has_failed or bool(callbacks.stop_reason())
    )
