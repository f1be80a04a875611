"""Validation beside a run: the averaged weights are copied, stored and judged while training goes on.

A copy is stored before the checkpoint that continues behind it, and what the judge says of it beside it: whatever is
killed, no validation up to a checkpoint is lost, and none of its rows comes twice.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load
from torch import Tensor

from pipelines.evaluate.validator import Judging
from pipelines.tracking.metric_log import ROWS, Row
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import (
    commit,
    read_bytes,
    read_file,
    read_manifest,
    write_bytes,
)
from presto_core.config.validation import METRICS, ValidationConfig
from presto_core.models.model_card import WEIGHTS, weights_bytes
from presto_core.training.ema import Ema
from presto_core.training.sharding import whole_on_first
from presto_core.training.state import TrainState

SNAPSHOTS = "validations"  # folder of a run's scratch
PREFIX = "validation/"  # of the names of its metrics
UPDATE = f"{PREFIX}update"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshots:
    """Where copies of weights are, as models that can be opened, and what was said of them.

    Attributes:
        scratch: of the run.
        kind: of the artifact that the run makes.
        model: what its manifest says of the model.
    """

    scratch: Folder
    kind: str
    model: dict[str, Any]

    def folder(self, update: int) -> Folder:
        return self.scratch.child(SNAPSHOTS).child(f"update-{update:09d}")

    def store(self, update: int, total_step: int, weights: Weights) -> str:
        manifest = {"kind": self.kind, "model": self.model, "total_step": total_step, "update": update}
        folder = self.folder(update)
        commit(folder, manifest, weights_bytes(weights))
        return folder.uri

    def tell(self, update: int, total_step: int, metrics: dict[str, float]) -> Row:
        """Store what the judge said, as a row that `report_missed` finds."""
        row = (total_step, {UPDATE: float(update)} | {f"{PREFIX}{name}": value for name, value in metrics.items()})
        write_bytes(self.scratch.child(ROWS), _row_file(update), json.dumps([row]).encode())
        return row

    def known(self, total_step: int) -> dict[int, tuple[int, Row | None]]:
        """By update: step and row, None where nothing was said yet, of the copies up to a step of the run."""
        rows = {}
        for info in self.scratch.child(ROWS).files(missing_ok=True):
            if info.base_name.startswith("validation-") and info.base_name.endswith(".json"):
                ((step, metrics),) = json.loads(read_bytes(self.scratch.child(ROWS), info.base_name))
                rows[int(metrics[UPDATE])] = (step, (step, metrics))
        waiting: dict[int, tuple[int, Row | None]] = {}
        for name in self.scratch.child(SNAPSHOTS).folders():
            folder = self.scratch.child(SNAPSHOTS).child(name)
            if folder.exists():
                manifest = read_manifest(folder)
                waiting[manifest["update"]] = (manifest["total_step"], None)
        return {update: found for update, found in sorted((waiting | rows).items()) if found[0] <= total_step}

    def keep_only(self, updates: set[int]) -> None:
        """Delete the copies of other updates."""
        for name in self.scratch.child(SNAPSHOTS).folders():
            if name not in {f"update-{update:09d}" for update in updates}:
                self.scratch.child(SNAPSHOTS).child(name).delete()


@dataclass
class Validation(AbstractContextManager["Validation"]):
    """Validations of one run; every rank calls `stepped`, all else is rank 0's.

    Args:
        judge: what is asked, from a thread.
        main: whether this is rank 0.
    """

    config: ValidationConfig
    snapshots: Snapshots
    judge: Judging
    ema: Ema
    last_update: int
    main: bool = True
    rows: dict[int, Row] = field(default_factory=dict)
    fresh: deque[Row] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.seen = self.ema.updates
        self.threads = [ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("snapshot", "validation")]
        self.stored: list[Future[Any]] = []
        self.judged: list[Future[Any]] = []
        self.under_way: set[int] = set()

    def resume(self, total_step: int) -> None:
        """Tell again what an earlier life of the run found, and ask again for what was under way."""
        for update, (step, row) in self.snapshots.known(total_step).items():
            if row:
                self.rows[update] = row
                self.fresh.append(row)
            else:
                self._ask(update, step, None)

    def stepped(self, state: TrainState) -> None:
        """After a step: copy the weights where a validation is due, and wait where too many are under way."""
        update, before, self.seen = self.ema.updates, self.seen, self.ema.updates
        if update == before or (update % self.config.every and update != self.last_update):
            return
        weights = whole_on_first(self.ema.network.state_dict())
        if self.main:
            copied = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            self.under_way.add(update)  # before it is there, so that it is not taken for an old one
            stored = self.threads[0].submit(self.snapshots.store, update, state.total_step, copied)
            self.stored.append(stored)
            self._ask(update, state.total_step, stored)
            self._wait_for(lambda: len([j for j in self.judged if not j.done()]) <= self.config.backlog)

    def take(self) -> list[Row]:
        """Rows that came since the last call.

        Raises:
            UserError: a model could not be judged or stored.
        """
        done = [future for future in self.judged if future.done()]
        self.judged = [future for future in self.judged if future not in done]
        for future in done:
            future.result()
        return [self.fresh.popleft() for _ in range(len(self.fresh))]

    def settle_stored(self) -> None:
        """Before a checkpoint is committed: every copy up to it is stored."""
        for future in list(self.stored):
            future.result()
            self.stored.remove(future)

    def finish(self) -> list[Row]:
        """Wait for all that is under way; the rows that came of it."""
        self._wait_for(lambda: all(j.done() for j in self.judged))
        return self.take()

    def best(self) -> tuple[int, dict[str, Tensor]]:
        """The update of the least Fréchet distance among the copies that are there, and its weights."""
        there = [update for update in self.rows if self.snapshots.folder(update).exists()]
        update = min(there, key=self._distance)
        folder = self.snapshots.folder(update)
        return update, load(read_file(folder, WEIGHTS, read_manifest(folder)))

    def _distance(self, update: int) -> tuple[float, int]:
        return self.rows[update][1][f"{PREFIX}fd"], update

    def _ask(self, update: int, total_step: int, stored: Future[str] | None) -> None:
        self.under_way.add(update)
        self.judged.append(self.threads[1].submit(self._judge, update, total_step, stored))

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        while not happened():
            wait([j for j in self.judged if not j.done()], return_when="FIRST_COMPLETED")

    def _judge(self, update: int, total_step: int, stored: Future[str] | None) -> None:
        uri = stored.result() if stored else self.snapshots.folder(update).uri
        started = time.perf_counter()
        found = self.judge(uri)
        metrics = {name: found[name] for name in METRICS} | {"seconds": time.perf_counter() - started}
        row = self.snapshots.tell(update, total_step, metrics)
        self.rows[update] = row
        self.under_way.discard(update)
        best = {min(self.rows, key=self._distance)} if self.config.keep == "best" else set()
        self.snapshots.keep_only(best | self.under_way)
        self.fresh.append(row)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for thread in self.threads:
            thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self


def _row_file(update: int) -> str:
    return f"validation-{update:09d}.json"
