"""Store rows of metrics next to a run's checkpoints, so that an interrupted command loses no row before a checkpoint.

Rows are stored before the checkpoint that follows them, so a resumed run can send MLflow the rows that it missed.
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
    """Rows since the last checkpoint; each checkpoint writes them to one small file in `folder`."""

    folder: Folder
    rows: list[Row] = field(default_factory=list)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, metrics))

    def pop_rows(self) -> list[Row]:
        rows, self.rows = self.rows, []
        return rows

    def write(self, total_step: int, rows: list[Row]) -> None:
        """Store rows up to `total_step`; repeating a call is harmless."""
        if rows:
            write_bytes(self.folder, _file_name(total_step), json.dumps(rows).encode())


def read_rows(scratch: Folder) -> Iterator[Row]:
    """Yield the rows stored next to a run's checkpoints, in order."""
    folder = scratch.child(METRICS_FOLDER)
    names = [info.base_name for info in folder.list_files(missing_ok=True)]
    for name in sorted(name for name in names if name.endswith(".json")):  # skips partial files
        yield from (tuple(row) for row in json.loads(read_bytes(folder, name)))


def replay_rows(scratch: Folder, run: TrackedRun, *, upto: float = inf) -> None:
    """Log stored rows to MLflow; rows that it already has are not sent again."""
    for step, metrics in read_rows(scratch):
        if step <= upto:
            run.log(step, metrics)


def _file_name(total_step: int) -> str:
    return f"rows-{total_step:09d}.json"
