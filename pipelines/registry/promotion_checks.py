"""Checks whether a version can become champion, against the thresholds `promote.*` of the preset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
from safetensors.numpy import load

from pipelines.data.parquet_tensors import Array
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.evaluation_tags import EMBEDDINGS, select_best_rows
from pipelines.registry.maintenance import verify_version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.promotion import PromoteConfig
from presto_core.errors import UserError
from presto_core.metrics.distances import frechet_distance
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
    last = client.get_run(candidate.mlflow_run).data.metrics
    signals = {name: last[name] for name in expected if name in last}
    outside = list(find_out_of_range(signals, expected).values())
    is_healthy = bool(signals) and not outside
    found = "; ".join(outside) or (f"{len(signals)} signals in range" if signals else "no signals are recorded")
    wanted = "training signals in range" if limits.require_health else "any"
    return PromotionCheck("health", is_healthy or not limits.require_health, found, wanted)


def _check_quality(candidate: Version, limits: PromoteConfig) -> PromotionCheck:
    fd = candidate.measurements.get("fd")
    if fd is None:
        return PromotionCheck("quality", False, "not evaluated", "run presto evaluate on it")
    wanted = "any" if limits.max_fd is None else f"FD ≤ {limits.max_fd:g}"
    found = f"FD {fd:.2f} ({candidate.measurements.get('system', '')})"
    return PromotionCheck("quality", limits.max_fd is None or fd <= limits.max_fd, found, wanted)


def _compare_with_champion(
    client: Any, candidate: Version, champion: Version | None, limits: PromoteConfig
) -> PromotionCheck:
    """Compare Fréchet distances by their ratio, with a bootstrap interval over both models' clips."""
    name, wanted = "against champion", f"upper end of the FD ratio ≤ {limits.max_fd_ratio:g}"
    if champion is None:
        return PromotionCheck(name, True, "there is no champion yet", wanted)
    if champion.content == candidate.content:
        return PromotionCheck(name, True, "it is the champion", wanted)
    mine, theirs, reference = _load_embeddings(client, candidate, champion)
    low, ratio, high = ratio_interval(
        mine, theirs, reference, draws=limits.bootstrap_draws, confidence=limits.confidence
    )
    found = f"{ratio:.3f} ({low:.3f} ... {high:.3f}, {limits.confidence:.0%}) of {champion.name}@v{champion.number}"
    return PromotionCheck(name, high <= limits.max_fd_ratio, found, wanted)


def ratio_interval(
    mine: Array, theirs: Array, reference: Array, *, draws: int, confidence: float
) -> tuple[float, float, float]:
    """Return lower end, value and upper end of FD(mine) / FD(theirs), by percentile bootstrap over generated samples.

    Equally many samples are resampled in pairs, because they are made from the same prompts and noise.

    Args:
        mine: [N, D] embeddings of the candidate's samples.
        theirs: [M, D] embeddings of the champion's samples.
        reference: [K, D] embeddings of held-out music.
        draws: bootstrap resamples.
        confidence: probability mass of the interval.
    """
    rng = np.random.default_rng(0)
    value = frechet_distance(generated=mine, reference=reference) / frechet_distance(
        generated=theirs, reference=reference
    )
    ratios = []
    for _ in range(draws):
        indices = rng.integers(len(mine), size=len(mine))
        other_indices = indices if len(theirs) == len(mine) else rng.integers(len(theirs), size=len(theirs))
        numerator = frechet_distance(generated=mine[indices], reference=reference)
        ratios.append(numerator / frechet_distance(generated=theirs[other_indices], reference=reference))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(min(low, value)), float(value), float(max(high, value))


def _load_embeddings(client: Any, candidate: Version, champion: Version) -> tuple[Array, Array, Array]:
    """Return embeddings of both versions and of held-out music, from one report or two comparable ones."""
    catalog = Catalog(client)
    report = _read_report(catalog, candidate)
    if champion.artifact_id in report.manifest["parents"].values():
        other = report
    else:
        other = _read_report(catalog, champion)
        if _comparison_key(other) != _comparison_key(report):
            raise UserError(
                f"{candidate.label} and the champion were evaluated with different measures; evaluate both: "
                f"presto evaluate inputs.generator={candidate.artifact_id} inputs.compared=[{champion.artifact_id}]"
            )
    mine, reference = _load_samples(report, candidate)
    theirs, _ = _load_samples(other, champion)
    return mine, theirs, reference


def _read_report(catalog: Catalog, version: Version) -> Artifact:
    if "report" not in version.measurements:
        raise UserError(f"{version.label} is not evaluated; run presto evaluate on it")
    return read_artifact(open_folder(catalog.find(str(version.measurements["report"])).uri))


def _comparison_key(report: Artifact) -> tuple[str, str]:
    """Return what distances depend on: data set, and the measure (embedding and decoder)."""
    return report.manifest["parents"]["dataset"], str(report.manifest["report"].get("measure"))


def _load_samples(report: Artifact, version: Version) -> tuple[Array, Array]:
    folder = open_folder(report.uri)
    if EMBEDDINGS not in report.manifest["files"]:
        raise UserError(f"report {report.id} holds no embeddings; run presto evaluate again")
    arrays = load(read_file(folder, EMBEDDINGS, report.manifest))
    result = json.loads(read_file(folder, "report.json", report.manifest))
    row = select_best_rows(result, report.manifest["parents"])[version.artifact_id]
    return arrays[row["name"]].astype(np.float64), arrays["reference"].astype(np.float64)


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
