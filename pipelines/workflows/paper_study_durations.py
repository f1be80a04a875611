"""How long cells and measurements of `presto study paper` took, for its estimates of what is left."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipelines.workflows.paper_study_plan import FOLDER
from presto_core.artifacts.durable import make_folders


@dataclass
class Durations:
    """Seconds of runs and measurements by kind, kept for the estimates of a dry run."""

    seconds: dict[str, dict[str, float]]

    @staticmethod
    def load() -> Durations:
        path = FOLDER / "durations.json"
        return Durations(json.loads(path.read_text()) if path.exists() else {})

    def add(self, kind: str, name: str, seconds: float) -> None:
        self.seconds.setdefault(kind, {})[name] = seconds
        make_folders(FOLDER)
        (FOLDER / "durations.json").write_text(json.dumps(self.seconds, indent=2))

    def mean(self, kind: str) -> float | None:
        """Mean seconds of one of a kind; None if none is finished."""
        found = list(self.seconds.get(kind, {}).values())
        return sum(found) / len(found) if found else None
