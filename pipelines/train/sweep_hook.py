"""A run as a trial of a sweep: the callback for its metrics, and the tags of its MLflow run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trial:
    """A trial: the stage neither registers nor plots its run, and may be asked to end it early.

    Attributes:
        on_row: receives every row of metrics; returns why the run should end early, or an empty string.
        tags: tags of the run in MLflow.
    """

    on_row: Callable[[int, dict[str, float]], str]
    tags: dict[str, str] = field(default_factory=dict)
