"""Checks whether a version can become champion, against the thresholds `promote.*` of the preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np

from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.champion_comparison import GroupedEmbeddings, estimate_excess, load_chosen_samples
from pipelines.registry.maintenance import verify_version
from pipelines.registry.run_facts import read_signals
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.config.promotion import PromoteConfig
from presto_core.errors import UserError
from presto_core.metrics.table import METRICS
from presto_core.training.health import STEP_DISTILLATION, TEACHER, HealthRange, find_out_of_range

HEALTH_SIGNALS: dict[str, dict[str, HealthRange]] = {
    "generator": STEP_DISTILLATION,
    "teacher": TEACHER,
    "layers": TEACHER,
}


@dataclass(frozen=True)
class PromotionCheck:
    """One row of the table of checks."""

    name: str
    passed: bool
    found: str
    wanted: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(
    client: Any, candidate: Version, champion: Version | None, limits: PromoteConfig
) -> list[PromotionCheck]:
    """Run all checks of a candidate; a failure does not stop the others."""
    table: list[tuple[str, Callable[[], PromotionCheck]]] = [
        ("files", lambda: _check_files(candidate)),
        ("licence", lambda: _check_license(candidate, limits)),
        ("health", lambda: _check_health(client, candidate, limits)),
        ("quality", lambda: _check_quality(candidate, limits)),
        ("against champion", lambda: _compare_with_champion(client, candidate, champion, limits)),
        ("latency", lambda: _check_latency(candidate, champion, limits)),
    ]
    return [_run_check(name, check) for name, check in table]


def _run_check(name: str, check: Callable[[], PromotionCheck]) -> PromotionCheck:
    try:
        return check()
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


def _compare_with_champion(
    client: Any, candidate: Version, champion: Version | None, limits: PromoteConfig
) -> PromotionCheck:
    """Compare MMDs on the validation split, with an interval over tracks of prompts and of the reference."""
    name, ratio = "against champion", limits.max_mmd_ratio
    wanted = "any" if ratio is None else f"MMD ≤ {ratio:g} x the champion's, at the interval's upper end"
    if champion is None:
        return PromotionCheck(name, True, "there is no champion yet", wanted)
    if champion.content == candidate.content:
        return PromotionCheck(name, True, "it is the champion", wanted)
    mine, theirs, reference = _load_samples_of_both(client, candidate, champion)
    excess = estimate_excess(
        mine, theirs, reference, ratio=ratio or 1.0, groups=limits.interval_groups, confidence=limits.confidence
    )
    found = (
        f"MMD x 1000: {excess.mine * 1e3:.1f}, {excess.theirs * 1e3:.1f} of {champion.name}@v{champion.number}; "
        f"exceeds {ratio or 1:g} x the champion's by at most {excess.high * 1e3:.1f} ({limits.confidence:.0%})"
    )
    return PromotionCheck(name, ratio is None or excess.high <= 0, found, wanted)


def _load_samples_of_both(
    client: Any, candidate: Version, champion: Version
) -> tuple[GroupedEmbeddings, GroupedEmbeddings, GroupedEmbeddings]:
    """Return embeddings of both versions and of real music, from one report or two comparable ones."""
    catalog = Catalog(client)
    report = _read_report(catalog, candidate)
    both = f"inputs.generator={candidate.artifact_id} inputs.compared=[{champion.artifact_id}]"
    fix = f"evaluate both: presto evaluate {both}"
    if champion.artifact_id in report.manifest["parents"].values():
        other = report
    else:
        other = _read_report(catalog, champion)
        if _comparison_key(other) != _comparison_key(report):
            raise UserError(
                f"{candidate.label} and the champion were evaluated with different measures "
                f"({_describe_measure(report, candidate)}; {_describe_measure(other, champion)}); {fix}"
            )
    mine, reference = load_chosen_samples(report, candidate)
    theirs, other_reference = load_chosen_samples(other, champion)
    if not np.isin(other_reference.groups, reference.groups).any():
        raise UserError(f"{candidate.label} and the champion were evaluated on different splits of the data set; {fix}")
    return mine, theirs, reference


def _describe_measure(report: Artifact, version: Version) -> str:
    """What the distances of a version depend on, to read."""
    name, _, digest = str(version.measurements.get("embedding", "an embedding unknown")).rpartition(" ")
    return f"{name} {digest[:12]} on data set {report.manifest['parents']['dataset']}"


def _read_report(catalog: Catalog, version: Version) -> Artifact:
    if "report" not in version.measurements:
        raise UserError(f"{version.label} is not evaluated; run presto evaluate on it")
    return read_artifact(open_folder(catalog.find(str(version.measurements["report"])).uri))


def _comparison_key(report: Artifact) -> tuple[str, str]:
    """Return what distances depend on: data set, and the measure (embedding and decoder)."""
    return report.manifest["parents"]["dataset"], str(report.manifest["report"].get("measure"))


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
