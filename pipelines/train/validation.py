"""Validation during a run: the averaged weights are copied, stored and evaluated while training continues.

A copy is stored before the next checkpoint, and its result beside the copy: whatever is killed, no validation up to a
checkpoint is lost, and no row is repeated.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load
from torch import Tensor

from pipelines.evaluate.validator import ValidateFn
from pipelines.tracking.metric_log import METRICS_FOLDER, Row
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, commit, read_bytes, read_file, read_manifest, write_bytes
from presto_core.config.validation import ValidationConfig
from presto_core.metrics.table import canonical_name, headline_metric, list_validation_metrics
from presto_core.models.model_card import WEIGHTS, serialize_state
from presto_core.networks.adapters import merge_adapters
from presto_core.training.ema import Ema
from presto_core.training.outage import OutageTimer, retry_while_away
from presto_core.training.sharding import gather_on_rank0
from presto_core.training.state import TrainState

SNAPSHOTS = "validations"  # folder in a run's scratch
PREFIX = "validation/"  # of the names of metrics
UPDATE = f"{PREFIX}update"
POLL_S = 0.5  # between two looks at whether the store is away
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSnapshots:
    """Copies of weights, stored as models that can be opened, and their validation results.

    Attributes:
        scratch: scratch folder of the run.
        kind: kind of the artifact that the run makes.
        model: the model card in its manifest.
    """

    scratch: Folder
    kind: str
    model: dict[str, Any]

    def folder(self, update: int) -> Folder:
        return self.scratch.child(SNAPSHOTS).child(f"update-{update:09d}")

    def store(self, update: int, total_step: int, weights: Weights) -> str:
        manifest = {"kind": self.kind, "model": self.model, "total_step": total_step, "update": update}
        folder = self.folder(update)
        commit(folder, manifest, serialize_state(weights))
        return folder.uri

    def store_result(self, update: int, total_step: int, metrics: dict[str, float]) -> Row:
        """Store a validation result as a row that `metric_log.replay_rows` finds."""
        row = (total_step, {UPDATE: float(update)} | {f"{PREFIX}{name}": value for name, value in metrics.items()})
        write_bytes(self.scratch.child(METRICS_FOLDER), _row_file(update), json.dumps([row]).encode())
        return row

    def load(self, total_step: int) -> dict[int, tuple[int, Row | None]]:
        """Return the copies up to a step of the run, by update: step, and row or None if it is not validated yet."""
        rows = {}
        for info in self.scratch.child(METRICS_FOLDER).list_files(missing_ok=True):
            if info.base_name.startswith("validation-") and info.base_name.endswith(".json"):
                ((step, metrics),) = json.loads(read_bytes(self.scratch.child(METRICS_FOLDER), info.base_name))
                rows[int(metrics[UPDATE])] = (step, (step, rename_former_row(metrics)))
        pending: dict[int, tuple[int, Row | None]] = {}
        for name in self.scratch.child(SNAPSHOTS).list_folders():
            folder = self.scratch.child(SNAPSHOTS).child(name)
            if folder.exists():
                manifest = read_manifest(folder)
                pending[manifest["update"]] = (manifest["total_step"], None)
        return {update: entry for update, entry in sorted((pending | rows).items()) if entry[0] <= total_step}

    def prune(self, updates: set[int]) -> None:
        """Delete the copies of all other updates."""
        for name in self.scratch.child(SNAPSHOTS).list_folders():
            if name not in {f"update-{update:09d}" for update in updates}:
                self.scratch.child(SNAPSHOTS).child(name).delete()


@dataclass
class AsyncValidation(AbstractContextManager["AsyncValidation"]):
    """Validations of one run; every rank calls `after_step`, and rank 0 everything else.

    Args:
        validator: validates the model at a URI; called from a thread.
        main: whether this is rank 0.
        make_outage_timer: how long each thread waits for the store; not at all by default.
    """

    config: ValidationConfig
    snapshots: WeightSnapshots
    validator: ValidateFn
    ema: Ema
    last_update: int
    main: bool = True
    make_outage_timer: Callable[[], OutageTimer] = lambda: OutageTimer(0)
    rows: dict[int, Row] = field(default_factory=dict)
    new_rows: deque[Row] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.seen_updates = self.ema.updates
        self.threads = [ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("snapshot", "validation")]
        self.store_futures: list[Future[Any]] = []
        self.validation_futures: list[Future[Any]] = []
        self.pending: set[int] = set()
        self.store_timer, self.validation_timer = self.make_outage_timer(), self.make_outage_timer()

    def resume(self, total_step: int) -> None:
        """Report the results of earlier attempts again, and validate the copies that were pending."""
        for update, (step, row) in self.snapshots.load(total_step).items():
            if row:
                self.rows[update] = row
                self.new_rows.append(row)
            else:
                self._submit(update, step, None)

    def after_step(self, state: TrainState) -> None:
        """Copy the weights if a validation is due, and wait while too many are pending."""
        update, before, self.seen_updates = self.ema.updates, self.seen_updates, self.ema.updates
        if update == before or (update % self.config.every and update != self.last_update):
            return
        weights = gather_on_rank0(merge_adapters(self.ema.network).state_dict())
        if self.main:
            cpu_weights = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            self.pending.add(update)  # before the copy exists, so that `prune` does not delete it
            stored = self.threads[0].submit(self._store, update, state.total_step, cpu_weights)
            self.store_futures.append(stored)
            self._submit(update, state.total_step, stored)
            self._wait_for(lambda: len([j for j in self.validation_futures if not j.done()]) <= self.config.backlog)

    def pop_rows(self) -> list[Row]:
        """Return the rows since the last call.

        Raises:
            UserError: a model could not be validated or stored.
        """
        done = [future for future in self.validation_futures if future.done()]
        self.validation_futures = [future for future in self.validation_futures if future not in done]
        for future in done:
            future.result()
        return [self.new_rows.popleft() for _ in range(len(self.new_rows))]

    def wait_stored(self) -> None:
        """Wait until every copy is stored; called before a checkpoint is committed.

        Raises:
            StoreError: one cannot be stored yet, because the store is away: the checkpoint has to wait too.
        """
        for future in list(self.store_futures):
            while not wait([future], timeout=POLL_S).done:
                if error := self.store_timer.error:
                    raise StoreError(str(error)) from error.__cause__
            future.result()
            self.store_futures.remove(future)

    def finish(self) -> list[Row]:
        """Wait for all pending validations and return their rows."""
        self._wait_for(lambda: all(j.done() for j in self.validation_futures))
        return self.pop_rows()

    def load_best(self) -> tuple[int, dict[str, Tensor]]:
        """Return the update with the lowest headline metric (MMD) among the stored copies, and its weights."""
        available = [update for update in self.rows if self.snapshots.folder(update).exists()]
        update = min(available, key=self._distance_key)
        folder = self.snapshots.folder(update)
        return update, load(read_file(folder, WEIGHTS, read_manifest(folder)))

    def _distance_key(self, update: int) -> tuple[float, int]:
        return self.rows[update][1][f"{PREFIX}{headline_metric().name}"], update

    def _store(self, update: int, total_step: int, weights: Weights) -> str:
        store = partial(self.snapshots.store, update, total_step, weights)
        return retry_while_away(store, self.store_timer, f"the copy of weights of update {update}")

    def _submit(self, update: int, total_step: int, stored: Future[str] | None) -> None:
        self.pending.add(update)
        self.validation_futures.append(self.threads[1].submit(self._validate, update, total_step, stored))

    def _wait_for(self, is_met: Callable[[], bool]) -> None:
        while not is_met():
            wait([j for j in self.validation_futures if not j.done()], return_when="FIRST_COMPLETED")

    def _validate(self, update: int, total_step: int, stored: Future[str] | None) -> None:
        if stored:
            stored.result()  # before the time in which this thread may wait begins
        validate = partial(self._validate_stored, update, total_step, stored)
        retry_while_away(validate, self.validation_timer, f"the validation of update {update}")

    def _validate_stored(self, update: int, total_step: int, stored: Future[str] | None) -> None:
        uri = stored.result() if stored else self.snapshots.folder(update).uri
        started = time.perf_counter()
        distances = self.validator(uri)
        metrics = {name: distances[name] for name in list_validation_metrics()} | {
            "seconds": time.perf_counter() - started
        }
        row = self.snapshots.store_result(update, total_step, metrics)
        self.rows[update] = row
        self.pending.discard(update)
        best = {min(self.rows, key=self._distance_key)} if self.config.keep == "best" else set()
        self.snapshots.prune(best | self.pending)
        self.new_rows.append(row)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.store_timer.given_up.set()
            self.validation_timer.given_up.set()
        for thread in self.threads:
            thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self


def _row_file(update: int) -> str:
    return f"validation-{update:09d}.json"


def rename_former_row(metrics: dict[str, float]) -> dict[str, float]:
    """A stored row by the present names of its metrics."""
    return {f"{PREFIX}{canonical_name(name.removeprefix(PREFIX))}": value for name, value in metrics.items()}
