"""How many losses of workers a run survives: so many a day, since a run of a month on spot machines loses many.

It builds on internals of the Ray version that constraints.txt pins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

DAY_S = 24 * 3600.0
_COUNTERS = ("_worker_group_failures", "_controller_failures", "_preemption_failures")


class DailyFailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray's own policy, whose counters forget what is older than a day."""

    def __init__(self, failure_config: FailureConfig, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(failure_config)
        self.clock = clock
        self._times: dict[str, list[float]] = {counter: [] for counter in _COUNTERS}

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        now = self.clock()
        for counter, times in self._times.items():
            times[:] = [failed_at for failed_at in times if now - failed_at < DAY_S]
            setattr(self, counter, len(times))
        decision = super().make_decision(training_failed_error)
        for counter, times in self._times.items():
            times += [now] * (getattr(self, counter) - len(times))
        return decision


class DailyTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose `FailureConfig` counts failures of the last 24 hours."""

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        policy = DailyFailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**controller | {"failure_policy": policy})
