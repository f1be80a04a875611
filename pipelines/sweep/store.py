"""A sweep's records of its trials, as JSON beside the runs' artifacts: enough to resume a killed command.

Ray Tune's own state is pickled, and does not restore the rungs of its schedulers.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.train.validation import PREFIX, UPDATE
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from presto_core.metrics.table import canonical_name, rename_former

TRIALS, DEFINITION, RESULT = "trials", "sweep.json", "result.json"
RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"
DEFAULT, TRIAL, WINNER = "default", "trial", "winner"  # roles; default and winner are repeats with other seeds


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        settings: what differs from the preset.
        role: `trial`, or a repeat of the `winner` or the `default` with another seed.
        rows: validations by update, as metric -> value.
        steps, full_steps: total steps it was trained for, and those of a complete run.
        wall_s, trained_s, judged_s: seconds of the trial, of its steps, and of its validations.
        reason: why it failed.
    """

    run_id: str
    settings: dict[str, Any]
    role: str = TRIAL
    state: str = RUNNING
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    artifact: str = ""
    steps: int = 0
    full_steps: int = 0
    wall_s: float = 0.0
    trained_s: float = 0.0
    judged_s: float = 0.0
    reason: str = ""

    @property
    def is_done(self) -> bool:
        return self.state != RUNNING

    @property
    def last_update(self) -> int:
        """The last update that was validated."""
        return max(self.rows, default=0)

    def last_value(self, metric: str) -> float:
        """Return the metric at the last validation."""
        return self.rows[self.last_update][metric]

    def add_row(self, metrics: dict[str, float]) -> None:
        """Add a row of a run's metrics that is a validation."""
        update = int(metrics[UPDATE])
        self.rows[update] = {k.removeprefix(PREFIX): v for k, v in metrics.items() if k != UPDATE}


@dataclass(frozen=True)
class SweepStore:
    """The records of one sweep, in its folder."""

    folder: Folder

    def save(self, record: TrialRecord) -> None:
        write_bytes(self.folder.child(TRIALS), f"{record.run_id}.json", json.dumps(asdict(record), indent=1).encode())

    def load_all(self) -> dict[str, TrialRecord]:
        """Return all records by run_id."""
        trials, records = self.folder.child(TRIALS), {}
        for info in trials.list_files(missing_ok=True):
            if info.base_name.endswith(".json"):
                payload = json.loads(read_bytes(trials, info.base_name))
                payload["rows"] = {int(update): rename_former(row) for update, row in payload["rows"].items()}
                records[payload["run_id"]] = TrialRecord(**payload)
        return records

    def add_sessions(self, new_sessions: list[dict[str, float]]) -> list[dict[str, float]]:
        """Store sessions of the sweep that completed, and return all stored ones."""
        folder = self.folder.child("sessions")
        for session in new_sessions:
            write_bytes(folder, f"{time.time_ns():x}.json", json.dumps(session).encode())
        return [json.loads(read_bytes(folder, info.base_name)) for info in folder.list_files(missing_ok=True)]

    def write_definition(self, definition: dict[str, Any]) -> None:
        """Store what defines the sweep."""
        write_bytes(self.folder, DEFINITION, json.dumps(definition, indent=1).encode())

    def read_definition(self) -> dict[str, Any]:
        """Return what `write_definition` stored.

        Raises:
            StoreError: there is no such sweep.
        """
        if not self.folder.exists(DEFINITION):
            raise StoreError(f"there is no sweep at {self.folder.uri}; list them with presto sweep report")
        definition: dict[str, Any] = json.loads(read_bytes(self.folder, DEFINITION))
        return definition | {"metrics": [canonical_name(name) for name in definition["metrics"]]}


def sweep_folder(root: Folder, sweep_id: str) -> Folder:
    """Return the folder of a sweep's records."""
    return root.child("sweeps").child(sweep_id)
