"""Names of what a run's scratch folder holds."""

from __future__ import annotations

RECORD = "run.json"
CHECKPOINTS = "checkpoints"  # folder of a run's scratch
