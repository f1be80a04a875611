"""A run as a trial of a sweep: what the sweep is told of it, and how its record says where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trial:
    """Given to a stage, its run is neither registered nor drawn, and may be asked to end early.

    Attributes:
        tell: hears every row of metrics; answers why the run should end early, or nothing.
        tags: of the run in MLflow.
    """

    on_row: Callable[[int, dict[str, float]], str]
    tags: dict[str, str] = field(default_factory=dict)
