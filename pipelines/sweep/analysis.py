"""Analyze a sweep's records: ranking, spread over seeds, importance, Pareto front, and savings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from pipelines.sweep.importance import compute_importance
from pipelines.sweep.plan import SweepPlan
from pipelines.sweep.store import DEFAULT, FAILED, FINISHED, PRUNED, TRIAL, WINNER, TrialRecord
from presto_core.metrics.table import headline_metric
from tune_spaces.domains import to_overrides

Definition = dict[str, Any]


def make_definition(plan: SweepPlan, mlflow_id: str) -> Definition:
    """Return what a report needs of a sweep besides its records, as plain data."""
    sweep = plan.sweep.sweep
    return {
        "id": plan.id,
        "stage": sweep.stage,
        "preset": plan.preset,
        "words": [
            override for override in plan.overrides if not override.startswith("tracking.")
        ],  # a URI may hold a password
        "base": plan.base.model_dump(mode="json", exclude={"storage", "tracking"}),
        "keys": list(plan.space),
        "metrics": list(plan.metrics),
        "mode": sweep.mode,
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "updates": plan.base.updates,
        "keep": plan.base.validation.keep,
        "parents": plan.parents,
        "mlflow_run": mlflow_id,
    }


def analyze(definition: Definition, records: Iterable[TrialRecord], sessions: list[dict[str, float]]) -> dict[str, Any]:
    """Return the content of result.json.

    Args:
        sessions: seconds and concurrent trials of each completed session of the sweep.
    """
    all_records = list(records)
    trials = [r for r in all_records if r.role == TRIAL]
    best = rank(definition, trials)
    return {
        **definition,
        "trials": [_make_row(definition, r) for r in [*best, *(r for r in trials if r not in best)]],
        "repeats": {
            role: _compute_spread(definition, _select_repeats(all_records, role, best)) for role in (WINNER, DEFAULT)
        },
        "winner": _describe_winner(definition, best),
        "verdict": _make_verdict(definition, all_records, best),
        "importance": compute_importance(definition["metrics"][0], trials),
        "pareto": _find_pareto_front(definition, best),
        "saved": _compute_savings(trials),
        "overhead": _compute_overhead(all_records, sessions),
    }


def rank(definition: Definition, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the finished trials, best first; those of the same value by run_id."""
    sign = 1 if definition["mode"] == "min" else -1
    done = [r for r in records if r.role == TRIAL and r.state == FINISHED and r.rows]
    return sorted(done, key=lambda r: (sign * metric_value(definition, r), r.run_id))


def metric_value(definition: Definition, record: TrialRecord) -> float:
    """Return the metric of the weights that a run keeps: the last, or those of its lowest headline metric."""
    row = record.rows[record.last_update]
    if definition["keep"] == "best":
        row = min(record.rows.values(), key=lambda r: r[headline_metric().name])
    return row[definition["metrics"][0]]


def _make_row(definition: Definition, record: TrialRecord) -> dict[str, Any]:
    row = record.rows.get(record.last_update, {})
    value = metric_value(definition, record) if record.rows else None
    field_names = ("run_id", "settings", "role", "state", "artifact", "steps", "full_steps", "reason", "rows")
    return {
        "value": value,
        "update": record.last_update,
        "last": row,
        **{name: getattr(record, name) for name in field_names},
    }


def _select_repeats(records: list[TrialRecord], role: str, best: list[TrialRecord]) -> list[TrialRecord]:
    """Return the repeats of the preset, or of the present winner, which more samples may have changed."""
    settings = best[0].settings if best and role == WINNER else {}
    return [r for r in records if r.role == role and _drop_seed(r.settings) == _drop_seed(settings)]


def _drop_seed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "seed"}


def _compute_spread(definition: Definition, records: list[TrialRecord]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds."""
    values = [metric_value(definition, r) for r in records if r.state == FINISHED and r.rows]
    return {
        "values": values,
        "mean": mean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
    }


def _describe_winner(definition: Definition, best: list[TrialRecord]) -> dict[str, Any] | None:
    if not best:
        return None
    args = [definition["preset"] or "", *definition["words"], *to_overrides(best[0].settings)]
    command = " ".join(["presto", definition["stage"], *(_shell_quote(arg) for arg in args if arg)])
    return {"run_id": best[0].run_id, "settings": best[0].settings, "artifact": best[0].artifact, "command": command}


def _shell_quote(arg: str) -> str:
    return f"'{arg}'" if any(c in arg for c in ' {}[]"*?$&;()|<>') else arg


def _make_verdict(definition: Definition, records: list[TrialRecord], best: list[TrialRecord]) -> dict[str, Any]:
    """Return whether the winner beats the preset by more than the spread over seeds, in numbers and text."""
    metric = definition["metrics"][0]
    if not best:
        return {"beats": False, "says": "No trial finished, so there is no winner."}
    if not best[0].settings:
        return {"beats": False, "says": f"No trial beat the preset's own settings in {metric}."}
    won, own = (
        _compute_spread(definition, _select_repeats(records, role, best))["values"] for role in (WINNER, DEFAULT)
    )
    if min(len(won), len(own)) < 2:
        return {
            "beats": False,
            "says": "Winner and preset were not repeated with other seeds, so chance is not ruled out.",
        }
    from scipy.stats import ttest_ind

    gain = (mean(own) - mean(won)) * (1 if definition["mode"] == "min" else -1)
    spread = math.hypot(stdev(won), stdev(own))
    interval = ttest_ind(won, own, equal_var=False).confidence_interval(0.95)
    low, high = sorted(-x if definition["mode"] == "min" else x for x in (float(interval.low), float(interval.high)))
    beats = gain > spread
    text = (
        f"Over {len(won)} seeds that the search did not see, the winner's {metric} is {mean(won):.3f} ± "
        f"{stdev(won):.3f} and the preset's {mean(own):.3f} ± {stdev(own):.3f}: a gain of {gain:.3f} (95 % interval "
        f"{low:.3f} to {high:.3f}, Welch), {'more' if beats else 'not more'} than the spread over seeds, {spread:.3f}."
    )
    if not beats:
        text += " The winner does not beat the preset by more than chance."
    return {"beats": beats, "gain": gain, "spread": spread, "low": low, "high": high, "says": text}


def _find_pareto_front(definition: Definition, best: list[TrialRecord]) -> list[str]:
    """Return run_ids that no trial beats in both quality and cost: the second metric, or blocks per clip."""
    cost = definition["metrics"][1] if len(definition["metrics"]) > 1 else "blocks_run"
    front, lowest_cost = [], math.inf
    for record in best:  # by quality, so whatever costs less than all before it is on the front
        if record.last_value(cost) < lowest_cost:
            lowest_cost = record.last_value(cost)
            front.append(record.run_id)
    return front


def _compute_savings(trials: list[TrialRecord]) -> dict[str, float]:
    """Return what early stopping saved: steps that were not trained, and their time at the pace of the others."""
    counted = [r for r in trials if r.state in (FINISHED, PRUNED)]
    trained, full = sum(r.steps for r in counted), sum(r.full_steps for r in counted)
    seconds = sum(r.trained_s for r in counted)
    share = trained / full if full else 1.0
    return {
        "steps_trained": trained,
        "steps_of_all_to_the_end": full,
        "share": share,
        "trial_seconds_saved": seconds * (1 / share - 1) if trained else 0.0,
    }


def _compute_overhead(records: list[TrialRecord], sessions: list[dict[str, float]]) -> dict[str, float]:
    """Return seconds beyond training steps as shares of those; `all_share` includes the sweep's start and end."""
    trained, validated, wall = (sum(getattr(r, f"{name}_s") for r in records) for name in ("trained", "judged", "wall"))
    available = sum(s["seconds"] * s["at_once"] for s in sessions)
    return {
        "trained_s": trained,
        "validation_share": validated / trained if trained else 0.0,
        "other_share": max(0.0, wall - trained - validated) / trained if trained else 0.0,
        "all_share": max(0.0, available - trained - validated) / trained if trained and available else 0.0,
        "failed": float(sum(r.state == FAILED for r in records)),
    }


def collect_overrides(definition: Definition) -> dict[str, Any]:
    """Return the winner's settings and the overrides of the sweep's command, as nested sections."""
    from presto_core.config.overrides import parse_override
    from presto_core.config.schema import SweepStage, stage_configs
    from presto_core.config.stage import NOT_IN_RUN_ID

    stage = stage_configs()[definition["stage"]]
    given = dict(
        parse_override(SweepStage if override.startswith("sweep.") else stage, override)
        for override in definition["words"]
        if override.partition("=")[0].partition(".")[0] not in NOT_IN_RUN_ID
    )
    changed = given | definition["winner"]["settings"]
    nested: dict[str, Any] = {}
    for key, value in changed.items():
        *path, last = key.split(".")
        inner = nested
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return nested
