"""Which of the checks before a promotion pass, from what a version and its training run record, and at the limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry import names
from pipelines.registry.catalog import Version
from pipelines.registry.promotion_check import PromotionCheck
from pipelines.registry.promotion_checks import COMPARISONS, run_checks
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.tags import ARTIFACT_ID, KIND
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig


def make_version(number: int = 1, *, run: str = "", licences: Sequence[str] = ("CC0-1.0",), **measured: Any) -> Version:
    tags = {ARTIFACT_ID: f"{number:016x}", KIND: "teacher", names.CONTENT: f"content-{number}"}
    tags |= {names.LICENCES: json.dumps(licences)} if licences else {}
    tags |= {f"{names.MEASURED}{name}": str(value) for name, value in measured.items()}
    return Version("presto-teacher", number, (), tags | {names.ARTIFACT_URI: "nowhere"}, run, 0)


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return open_tracker(TrackingConfig())


def check(tracker: Tracker, candidate: Version, champion: Version | None = None, **limits: Any) -> set[str]:
    """Names of the checks that pass; those of files and of the champion's samples cannot, without artifacts."""
    table: list[PromotionCheck] = run_checks(tracker.client, candidate, champion, PromoteConfig(**limits))
    assert [row.name for row in table] == ["files", "licence", "health", "quality", *COMPARISONS, "latency"]
    return {row.name for row in table if row.passed}


def record_run(tracker: Tracker, **metrics: float) -> str:
    run = str(tracker.client.create_run(tracker.experiment_id).info.run_id)
    for name, value in metrics.items():
        tracker.client.log_metric(run, name, value)
    return run


@pytest.mark.parametrize(
    ("found", "allowed", "required", "passed"),
    [
        ((), (), True, False),
        ((), (), False, True),
        (("CC0-1.0", "MIT"), (), True, True),
        (("CC0-1.0", "MIT"), ("CC*",), True, False),
        (("CC0-1.0", "CC-BY-4.0"), ("CC*",), True, True),
        ((), ("CC*",), True, False),
    ],
)
def test_every_licence_must_be_allowed(
    tracker: Tracker, found: Sequence[str], allowed: Sequence[str], required: bool, passed: bool
):
    candidate = make_version(run=record_run(tracker), licences=found)
    assert ("licence" in check(tracker, candidate, licences=allowed, require_licence=required)) is passed


@pytest.mark.parametrize(
    ("metrics", "passed"),
    [({"dsm_loss": 0.5, "grad_norm": 1.0}, True), ({"dsm_loss": 99.0}, False), ({}, False), ({"other": 1.0}, False)],
)
def test_health_needs_signals_and_all_of_them_in_range(tracker: Tracker, metrics: dict[str, float], passed: bool):
    candidate = make_version(run=record_run(tracker, **metrics))
    assert ("health" in check(tracker, candidate)) is passed
    assert "health" in check(tracker, candidate, require_health=False)


def test_distance_and_latency_are_compared_with_their_limits(tracker: Tracker):
    run = record_run(tracker)
    candidate = make_version(run=run, fd=2.0, mmd=0.1, latency_ms=50.0, hardware="a")
    assert {"quality", "latency"} <= check(tracker, candidate, max_fd=2.0, max_mmd=0.1, max_latency_ms=50.0)
    assert not {"quality", "latency"} & check(tracker, candidate, max_mmd=0.09, max_latency_ms=49.0)
    assert "quality" not in check(tracker, candidate, max_mmd=0.1, max_fd=1.9)
    former = make_version(run=run, fd=2.0, latency_ms=50.0, hardware="a")  # evaluated without MMD
    assert "quality" not in check(tracker, former, max_mmd=0.1)
    assert not {"quality", "latency"} & check(tracker, make_version(run=run))  # not evaluated


@pytest.mark.parametrize(("hardware", "theirs", "passed"), [("a", 40.0, True), ("a", 39.0, False), ("b", 1.0, True)])
def test_latency_is_compared_with_the_champion_on_the_same_hardware(
    tracker: Tracker, hardware: str, theirs: float, passed: bool
):
    candidate = make_version(run=record_run(tracker), latency_ms=50.0, hardware="a")
    champion = make_version(2, latency_ms=theirs, hardware=hardware)
    assert ("latency" in check(tracker, candidate, champion, max_latency_ratio=1.25)) is passed


def test_the_first_champion_and_the_champion_itself_need_no_samples(tracker: Tracker):
    candidate = make_version(run=record_run(tracker))
    assert "against champion" in check(tracker, candidate)
    assert set(COMPARISONS) <= check(tracker, candidate, candidate)
    assert "against champion" not in check(tracker, candidate, make_version(2))  # it is not evaluated


def test_a_version_that_is_not_evaluated_gets_one_command(tracker: Tracker):
    candidate = make_version(run=record_run(tracker))
    table = run_checks(tracker.client, candidate, make_version(2), PromoteConfig())
    failed = [row for row in table if row.name in COMPARISONS and not row.passed]
    assert {row.name for row in failed} >= {"samples", "noise floor", "against champion"}
    assert all(candidate.label in row.found and "presto evaluate" in row.fix for row in failed)
    assert len({row.fix for row in failed}) == 1
