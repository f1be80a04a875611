"""File and folder names inside a run's scratch folder."""

from __future__ import annotations

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
LEASE = "lease"  # folder: which process works on the run
