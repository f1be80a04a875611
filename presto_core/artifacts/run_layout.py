"""Names of what a run's scratch folder holds."""

from __future__ import annotations

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"  # folder of a run's scratch
