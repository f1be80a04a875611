"""What every rank of a training run does, in Ray or out of it: build, resume, train, save, finish."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipelines.cluster.heap import return_freed_memory
from pipelines.cluster.shutdown import StoppedError
from pipelines.data.dataset import LatentDataset, open_dataset, stream_batches
from pipelines.data.shard_cache import ShardCache
from pipelines.evaluate.validator import get_validator
from pipelines.tracking.metric_log import METRICS_FOLDER, MetricLog, Row
from pipelines.train.spec import TrainSpec
from pipelines.train.validation import AsyncValidation, WeightSnapshots
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.run_layout import CHECKPOINTS
from presto_core.artifacts.store import StoreError
from presto_core.config.stage import TrainingStage
from presto_core.device import allow_tf32, check_autocast
from presto_core.models.recorded_components import OwnFolders
from presto_core.networks.adapters import merge_adapters
from presto_core.training.async_checkpoint import CheckpointWriter
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.checkpoint_folders import delete_incomplete
from presto_core.training.loop import Hooks, train
from presto_core.training.outage import OutageTimer, retry_while_away
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState

LARGE = 2**28  # parameters of networks whose passes take so long that fresh pages for each activation cost nothing


@dataclass(frozen=True)
class WorkerCallbacks:
    """How a rank reports to the driver.

    Attributes:
        report: a row of metrics, or none at the step where the run starts; only rank 0 calls it.
        warn: shows a message.
        stop_reason: why the run should end early, as far as this rank knows; empty if it should not.
        on_checkpoint: receives the step of each complete checkpoint; only rank 0 calls it.
        check_current_attempt: raises if other workers have taken over; called before anything is written.
    """

    report: Callable[[int, dict[str, float]], None]
    warn: Callable[[str], None]
    stop_reason: Callable[[], str]
    on_checkpoint: Callable[[int], None] = lambda step: None
    check_current_attempt: Callable[[], None] = lambda: None


def train_worker(spec: TrainSpec, parallel: Parallel, callbacks: WorkerCallbacks, *, reader: Any) -> None:
    """Build, resume, train, save, finish: the same on every rank, in Ray or out of it."""
    config: TrainingStage = spec.config
    torch.set_num_threads(config.cluster.torch_threads)
    dataset = open_dataset(spec.dataset_uri).exclude_shards(spec.skipped)
    torch.manual_seed(config.seed)  # networks are initialised alike on all ranks
    dtype = torch.bfloat16 if config.loop.autocast == "bf16" else None
    check_autocast(parallel.device, dtype)
    algorithm = spec.stage.make_algorithm(config, spec.models, dataset, parallel, dtype)
    state, main, scratch = algorithm.state, parallel.rank == 0, spec.open_scratch()
    if sum(p.numel() for network in state.networks.values() for p in network.parameters()) > LARGE:
        return_freed_memory()
    epoch = spec.fence.epoch if spec.fence else 1
    _resume(scratch.child(CHECKPOINTS), state, parallel, callbacks, epoch=epoch)
    batches = stream_batches(
        dataset,
        seed=config.seed,
        cursor=state.cursor,
        global_batch_size=config.section.global_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        device=parallel.device,
        reader=partial(reader, max_outage_s=60 * config.loop.max_unsaved_minutes),
        cache=ShardCache.from_config(config.cluster),
        crop_frames=config.data.crop_frames,
        caption_dropout=config.caption_dropout,
        attribute_dropout=config.attribute_dropout,
        pad_captions=config.loop.compile,
        card=spec.make_card(dataset),
    )
    writer = CheckpointWriter(
        scratch.child(CHECKPOINTS),
        last_saved_step=state.total_step,
        keep=config.loop.keep_checkpoints,
        every=config.loop.keep_every,
        epoch=epoch,
        max_unsaved_s=60 * config.loop.max_unsaved_minutes,
        warn=callbacks.warn,
        on_saved=callbacks.on_checkpoint,
        check_current_attempt=callbacks.check_current_attempt,
    )
    make_outage_timer = partial(OutageTimer, 60 * config.loop.max_unsaved_minutes, callbacks.warn, scratch.is_remote)
    opened = _open_validation(spec, dataset, state, scratch, make_outage_timer, main=main)
    with closing(batches), writer, opened as validation:
        hooks = _make_hooks(state, writer, MetricLog(scratch.child(METRICS_FOLDER)), callbacks, validation, main=main)
        with allow_tf32(config.loop.tf32):
            train(algorithm, batches, seed=config.seed, config=config.loop, parallel=parallel, hooks=hooks)
        writer.finish()
        if validation and main:
            _report_rows(validation.finish(), callbacks)
    if state.total_step < algorithm.total_steps:
        raise StoppedError(
            f"{spec.stage.name} stopped at step {state.total_step} of {algorithm.total_steps}, since "
            f"{callbacks.stop_reason() or 'a worker got SIGTERM'}; its state is saved, re-run the command to resume"
        )
    for ema in state.emas.values():
        ema.gather()
    if main:
        callbacks.check_current_attempt()

        def commit() -> None:
            spec.stage.commit(spec, dataset, state, _conclude_validation(spec, state, validation) if validation else {})

        retry_while_away(commit, make_outage_timer(), "the artifact")


def _open_validation(
    spec: TrainSpec,
    dataset: LatentDataset,
    state: TrainState,
    scratch: Folder,
    make_outage_timer: Callable[[], OutageTimer],
    *,
    main: bool,
) -> AbstractContextManager[AsyncValidation | None]:
    """The run's validation, with what an earlier attempt left; none if `validation.every` is 0."""
    config: TrainingStage = spec.config
    if not config.validation.every:
        return nullcontext()
    (ema,) = state.emas.values()
    snapshots = WeightSnapshots(scratch, spec.stage.kind, spec.make_card(dataset).to_dict())
    own = OwnFolders.from_config(config.storage)
    validator = get_validator(config.validation, dataset.uri, config.cluster, own) if main else _unreachable_validator
    validation = AsyncValidation(
        config.validation,
        snapshots,
        validator,
        ema,
        last_update=config.updates,
        main=main,
        make_outage_timer=make_outage_timer,
    )
    if main:
        validation.resume(state.total_step)
    return validation


def _unreachable_validator(uri: str) -> dict[str, float]:
    raise AssertionError("only rank 0 asks")


def _conclude_validation(spec: TrainSpec, state: TrainState, validation: AsyncValidation) -> dict[str, Any]:
    """What the manifest records of validations; with keep=best, the best weights replace the last."""
    (ema,) = state.emas.values()
    config: TrainingStage = spec.config
    kept_update = config.updates
    if config.validation.keep == "best":
        kept_update, weights = validation.load_best()
        ema.network = merge_adapters(ema.network)
        ema.network.load_state_dict(weights)
    rows = [row for _, row in sorted(validation.rows.items())]
    return {"validation": {"judged": config.validation.comparison_settings(), "kept_update": kept_update, "rows": rows}}


def _report_rows(rows: list[Row], callbacks: WorkerCallbacks) -> None:
    for step, metrics in rows:
        callbacks.report(step, metrics)


def _resume(
    checkpoints: Folder, state: TrainState, parallel: Parallel, callbacks: WorkerCallbacks, *, epoch: int
) -> None:
    """Load the newest checkpoint on every rank, and report where the run starts."""
    main = parallel.rank == 0
    if main:
        delete_incomplete(checkpoints, epoch=epoch)
    load_checkpoint(checkpoints, state, callbacks.warn if main else lambda message: None)
    mean_step = float(parallel.average(torch.tensor(float(state.total_step), device=parallel.device)))
    if mean_step != state.total_step:
        raise StoreError(f"workers found different checkpoints in {checkpoints.uri}; check that each can read it")
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
    """What the loop calls: rank 0 reports, saves and asks the driver; every rank handles its own signals."""

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
