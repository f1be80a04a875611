"""What a reader of a report must know before ranking by its numbers: too few rows, no intervals, no difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from presto_core.metrics.intervals import MIN_TRACKS
from presto_core.metrics.table import METRICS, Metric


def list_warnings(result: Mapping[str, Any]) -> list[str]:
    """Warnings about the numbers of a report (content of report.json, format 2), one line each.

    Fewer than 2 D rows of a set for Fréchet distances; too few tracks for intervals; metrics whose interval of real
    music touches that of a system.
    """
    return [*_warn_of_few_rows(result), *_warn_of_few_tracks(result), *_warn_of_no_difference(result)]


def intervals_touch(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two intervals (low, high) have a value in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def _warn_of_few_rows(result: Mapping[str, Any]) -> list[str]:
    """The rank of a covariance is at most n - 1: with n < 2 D, FD measures n more than music."""
    dim = next((embedder["dim"] for embedder in result.get("embedders", ())), None)
    fewest = min(result["embeddings"]["generated"], result["embeddings"]["reference"])
    if dim is None or fewest >= 2 * dim:
        return []
    titles = " and ".join(METRICS[name].title for name in ("fd", "fd_inf"))
    return [f"{titles}: {fewest} embeddings are fewer than twice their {dim} dimensions; do not rank by them"]


def _warn_of_few_tracks(result: Mapping[str, Any]) -> list[str]:
    tracks = result.get("tracks", MIN_TRACKS)
    if tracks >= MIN_TRACKS:
        return []
    return [f"no intervals: the music compared with is of {tracks} track(s), and intervals need {MIN_TRACKS}"]


def _warn_of_no_difference(result: Mapping[str, Any]) -> list[str]:
    warnings = []
    for metric in METRICS.values():
        floor = result["floor"].get("intervals", {}).get(metric.name)
        if floor is None or not metric.better or metric.group != "quality":
            continue
        intervals = {row["name"]: row.get("intervals", {}).get(metric.name) for row in result["systems"]}
        alike = [name for name, ends in intervals.items() if ends is not None and intervals_touch(ends, floor)]
        if alike:
            warnings.append(_describe_floor(metric, floor, alike))
    return warnings


def _describe_floor(metric: Metric, floor: Sequence[float], systems: list[str]) -> str:
    low, high = (metric.format_value(end) for end in floor)
    return f"{metric.title}: {', '.join(systems)} cannot be told apart from real music ({low} to {high})"
