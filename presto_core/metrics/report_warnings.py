"""What a reader of a report must know before ranking by its numbers: too few rows, no difference, a weak teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from presto_core.metrics.intervals import MIN_TRACKS
from presto_core.metrics.table import METRICS, Metric
from presto_core.metrics.teacher_gate import list_report_lines


def list_warnings(result: Mapping[str, Any]) -> list[str]:
    """Warnings about the numbers of a report (content of report.json, format 2), one line each.

    Metrics that are left out for too few rows or tracks; too few tracks for intervals or for tests of fitness; metrics
    whose interval of real music touches that of a system; a teacher whose students show little.
    """
    return [
        *_warn_of_few_rows(result),
        *_warn_of_missing_neighbors(result),
        *_warn_of_few_tracks(result),
        *_warn_of_untested_metrics(result),
        *_warn_of_no_difference(result),
        *_warn_of_weak_teacher(result),
    ]


def intervals_touch(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two intervals (low, high) have a value in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def _warn_of_few_rows(result: Mapping[str, Any]) -> list[str]:
    """The rank of a covariance is at most n - 1: with n < 2 D, FD measures n more than music, and is left out."""
    counts = result.get("embeddings", {})
    embedders = [embedder for embedder in result.get("embedders", ()) if "dim" in embedder]
    if not counts or not embedders:
        return []
    fewest = min(counts.values())
    warnings = []
    for embedder in embedders:
        few = [m for m in METRICS.values() if fewest < m.rows_per_dim * embedder["dim"]]
        if few:
            titles = " and ".join(metric.title for metric in few)
            which = f" on {embedder['name']}" if len(embedders) > 1 else ""
            limit = f"twice their {embedder['dim']} dimensions"
            warnings.append(f"{titles}{which} are left out: {fewest} embeddings are fewer than {limit}")
    return warnings


def _warn_of_missing_neighbors(result: Mapping[str, Any]) -> list[str]:
    rows = [*result.get("systems", ()), *result.get("controls", ())]
    missing = [row["name"] for row in rows if "mmd" in row and "precision" not in row]
    if not missing:
        return []
    titles = ", ".join(metric.title for metric in METRICS.values() if metric.needs == "nearest_k")
    reason = "they, or the real music, are of no more than evaluate.nearest_k tracks"
    return [f"{titles} of {', '.join(missing)} are left out: {reason}"]


def _warn_of_few_tracks(result: Mapping[str, Any]) -> list[str]:
    tracks = result.get("tracks", MIN_TRACKS)
    if tracks >= MIN_TRACKS:
        return []
    return [f"no intervals: the music compared with is of {tracks} track(s), and intervals need {MIN_TRACKS}"]


def _warn_of_untested_metrics(result: Mapping[str, Any]) -> list[str]:
    untested = [name for name, verdicts in result.get("fitness", {}).items() if not verdicts]
    if not untested:
        return []
    which = f" on {', '.join(untested)}" if len(result["fitness"]) > 1 else ""
    return [
        f"the fitness of the metrics{which} was not tested: that needs {MIN_TRACKS} tracks of each split of real music"
    ]


def _warn_of_no_difference(result: Mapping[str, Any]) -> list[str]:
    warnings = []
    for metric in METRICS.values():
        floor = result.get("floor", {}).get("intervals", {}).get(metric.name)
        if floor is None or not metric.better or metric.group != "quality":
            continue
        intervals = {row["name"]: row.get("intervals", {}).get(metric.name) for row in result["systems"]}
        alike = [name for name, ends in intervals.items() if ends is not None and intervals_touch(ends, floor)]
        if alike:
            warnings.append(_describe_floor(metric, floor, alike))
    return warnings


def _describe_floor(metric: Metric, floor: Sequence[float], systems: list[str]) -> str:
    low, high = (metric.format_value(end) for end in floor)
    return f"{metric.title}: too few clips to tell {', '.join(systems)} from real music ({low} to {high})"


def _warn_of_weak_teacher(result: Mapping[str, Any]) -> list[str]:
    """A teacher is a base if no line of its gate fails that a report can decide."""
    problems = [line.problem for line in list_report_lines(result) if line.outcome == "fail"]
    if not problems:
        return []
    students = "its students show little about the methods"
    return [f"the teacher does not count as a base yet: {'; '.join(problems)}; {students}"]
