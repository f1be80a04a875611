"""Rows of metrics beside a run's checkpoints: what was measured before a checkpoint is never lost if the command is.

A row is stored before the checkpoint that continues behind it, so a resumed run can tell MLflow what it missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from pipelines.tracking.run import TrackedRun
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes, write_bytes

METRICS_FOLDER = "metrics"  # folder of a run's scratch

Row = tuple[int, dict[str, float]]


@dataclass
class MetricLog:
    """Rows since the last checkpoint, on their way into files of `folder`: one for each checkpoint, of few rows."""

    folder: Folder
    rows: list[Row] = field(default_factory=list)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, metrics))

    def pop_rows(self) -> list[Row]:
        rows, self.rows = self.rows, []
        return rows

    def write(self, total_step: int, rows: list[Row]) -> None:
        """Store rows up to `total_step`; may be done again with the same ones."""
        if rows:
            write_bytes(self.folder, _file_name(total_step), json.dumps(rows).encode())


def read_rows(scratch: Folder) -> Iterator[Row]:
    """Rows that lie beside a run's checkpoints, in order."""
    folder = scratch.child(METRICS_FOLDER)
    names = [info.base_name for info in folder.list_files(missing_ok=True)]
    for name in sorted(name for name in names if name.endswith(".json")):  # not the half of one
        yield from (tuple(row) for row in json.loads(read_bytes(folder, name)))


def replay_rows(scratch: Folder, run: TrackedRun, *, upto: float = inf) -> None:
    """Tell MLflow of stored rows; those that it was told before are not sent again."""
    for step, metrics in read_rows(scratch):
        if step <= upto:
            run.log(step, metrics)


def _file_name(total_step: int) -> str:
    return f"rows-{total_step:09d}.json"
