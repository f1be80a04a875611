"""File and folder names inside a run's scratch folder."""

from __future__ import annotations

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
