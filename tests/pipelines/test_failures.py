"""Losses of workers count for a day: a run of a month on spot machines survives more than `max_failures` of them."""

from __future__ import annotations

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from pipelines.train.failures import DAY_S, DailyFailurePolicy

HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("hours", "survived"),
    [((0, 1, 2), 2), ((0, 1, 24.5), 3), ((0, 13, 26, 39, 52, 65), 6), ((0, 1, 24.5, 24.7), 3), ((0, 0, 0), 2)],
)
def test_failures_are_counted_over_a_day(hours: tuple[float, ...], survived: int):
    now = [0.0]
    policy = DailyFailurePolicy(FailureConfig(max_failures=2), clock=lambda: now[0])
    decisions = []
    for hour in hours:
        now[0] = hour * HOUR_S
        decisions.append(policy.make_decision(WorkerGroupError("lost", {0: RuntimeError("node")})))
    assert decisions.count(FailureDecision.RETRY) == survived
    assert DAY_S == 24 * HOUR_S
