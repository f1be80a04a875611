"""Checks whether a version can become champion, against the thresholds `promote.*` of the preset."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

from pipelines.registry.catalog import Version
from pipelines.registry.comparison_checks import (
    check_noise_floor,
    check_samples,
    compare_with_champion,
    compare_with_teacher,
)
from pipelines.registry.maintenance import verify_version
from pipelines.registry.model_comparison import Evidence, NotComparableError
from pipelines.registry.promotion_check import PromotionCheck
from pipelines.registry.run_facts import read_signals
from presto_core.config.promotion import PromoteConfig
from presto_core.errors import UserError
from presto_core.metrics.table import METRICS
from presto_core.training.health import STEP_DISTILLATION, TEACHER, HealthRange, find_out_of_range

COMPARISONS = ("samples", "noise floor", "against teacher", "against champion")
"""The checks that `--accept-worse` accepts."""
HEALTH_SIGNALS: dict[str, dict[str, HealthRange]] = {
    "generator": STEP_DISTILLATION,
    "teacher": TEACHER,
    "layers": TEACHER,
}


def run_checks(
    client: Any, candidate: Version, champion: Version | None, limits: PromoteConfig
) -> list[PromotionCheck]:
    """Run all checks of a candidate; a failure does not stop the others."""
    evidence = Evidence(client, candidate, champion, limits)
    table: list[tuple[str, Callable[[], PromotionCheck]]] = [
        ("files", lambda: _check_files(candidate)),
        ("licence", lambda: _check_license(candidate, limits)),
        ("health", lambda: _check_health(client, candidate, limits)),
        ("quality", lambda: _check_quality(candidate, limits)),
        ("samples", lambda: check_samples(evidence)),
        ("noise floor", lambda: check_noise_floor(evidence)),
        ("against teacher", lambda: compare_with_teacher(evidence)),
        ("against champion", lambda: compare_with_champion(evidence)),
        ("latency", lambda: _check_latency(candidate, champion, limits)),
    ]
    return [_run_check(name, check) for name, check in table]


def _run_check(name: str, check: Callable[[], PromotionCheck]) -> PromotionCheck:
    try:
        return check()
    except NotComparableError as error:
        return PromotionCheck(name, False, str(error), "can be compared", fix=error.fix)
    except UserError as error:
        return PromotionCheck(name, False, str(error), "can be checked")


def _check_files(candidate: Version) -> PromotionCheck:
    problems = verify_version(candidate)
    return PromotionCheck("files", not problems, "; ".join(problems[:3]) or "all hashes match", "as committed")


def _check_license(candidate: Version, limits: PromoteConfig) -> PromotionCheck:
    found = candidate.licences
    foreign = [
        license_name for license_name in found if not any(fnmatch(license_name, allowed) for allowed in limits.licences)
    ]
    wanted = ", ".join(limits.licences) or ("stated" if limits.require_licence else "any")
    passed = (bool(found) or not limits.require_licence) and not (limits.licences and foreign)
    return PromotionCheck("licence", passed, ", ".join(found) or "none stated in the data", wanted)


def _check_health(client: Any, candidate: Version, limits: PromoteConfig) -> PromotionCheck:
    expected = HEALTH_SIGNALS.get(candidate.kind, {})
    last = read_signals(client, candidate)
    signals = {name: last[name] for name in expected if name in last}
    outside = list(find_out_of_range(signals, expected).values())
    is_healthy = bool(signals) and not outside
    found = "; ".join(outside) or (f"{len(signals)} signals in range" if signals else "no signals are recorded")
    wanted = "training signals in range" if limits.require_health else "any"
    return PromotionCheck("health", is_healthy or not limits.require_health, found, wanted)


def _check_quality(candidate: Version, limits: PromoteConfig) -> PromotionCheck:
    """Compare distances on the validation split with their limits; of former evaluations, those that they have."""
    measured = candidate.measurements
    bounds = {"mmd": limits.max_mmd, "fd": limits.max_fd}
    found = {name: measured.get(f"validation_{name}", measured.get(name)) for name in bounds}
    if all(value is None for value in found.values()):
        return PromotionCheck("quality", False, "not evaluated", "run presto evaluate on it")
    limited = {METRICS[name]: limit for name, limit in bounds.items() if limit is not None}
    values = {metric: found[metric.name] for metric in limited}
    passed = all(value is not None and value <= limited[metric] for metric, value in values.items())
    wanted = " and ".join(f"{metric.title} ≤ {metric.format_value(limit)}" for metric, limit in limited.items())
    texts = [f"{METRICS[name].title} {METRICS[name].format_value(v)}" for name, v in found.items() if v is not None]
    split = "validation split" if "validation_mmd" in measured else str(measured.get("split", "held-out music"))
    return PromotionCheck("quality", passed, f"{', '.join(texts)} on {split}", wanted or "any")


def _check_latency(candidate: Version, champion: Version | None, limits: PromoteConfig) -> PromotionCheck:
    mine, hardware = candidate.measurements.get("latency_ms"), candidate.measurements.get("hardware")
    if mine is None:
        return PromotionCheck("latency", False, "not measured", "run presto evaluate on it")
    wanted, passed, found = [], True, f"{mine:.0f} ms on {hardware}"
    if limits.max_latency_ms is not None:
        wanted.append(f"≤ {limits.max_latency_ms:g} ms")
        passed = mine <= limits.max_latency_ms
    theirs = champion.measurements.get("latency_ms") if champion else None
    if theirs and champion and champion.measurements.get("hardware") == hardware:
        wanted.append(f"≤ {limits.max_latency_ratio:g} of the champion's {theirs:.0f} ms")
        passed = passed and mine <= limits.max_latency_ratio * theirs
    return PromotionCheck("latency", passed, found, " and ".join(wanted) or "measured")
