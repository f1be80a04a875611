"""Which settings of a sweep explain how much of the metric's variance."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from pipelines.sweep.store import TrialRecord
from presto_core.extras import check_extra, import_extra

MIN_TRIALS_FOR_IMPORTANCE = 8  # with fewer trials, a random forest fits noise


def compute_importance(metric: str, trials: list[TrialRecord]) -> dict[str, Any]:
    """Return the share of the metric's variance that each setting explains (fANOVA, Hutter et al. 2014).

    Computed at the last update that all trials reached. Settings that only some trials have are excluded.
    """
    comparable = [r for r in trials if r.rows and r.settings]
    update = min((r.last_update for r in comparable), default=0)
    comparable = [r for r in comparable if update in r.rows and math.isfinite(r.rows[update][metric])]
    if len(comparable) < MIN_TRIALS_FOR_IMPORTANCE:
        return {"update": update, "trials": len(comparable), "shares": {}}
    check_extra("sweep", "the importance of settings")
    optuna = import_extra("optuna", "the importance of settings")
    optuna.logging.set_verbosity(logging.ERROR)
    shared = [k for k in comparable[0].settings if all(k in r.settings for r in comparable)]
    columns = {key: [_to_scalar(r.settings[key]) for r in comparable] for key in shared}
    varied = {key: values for key, values in columns.items() if len(set(values)) > 1}
    if not varied:
        return {"update": update, "trials": len(comparable), "shares": {}}
    distributions = {key: _make_distribution(values) for key, values in varied.items()}
    study = optuna.create_study()
    for i, record in enumerate(comparable):
        params, value = (
            {k: v[i] for k, v in varied.items()},
            record.rows[update][metric],
        )
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {"update": update, "trials": len(comparable), "shares": {k: float(v) for k, v in shares.items()}}


def _to_scalar(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) or value is None else json.dumps(value)


def _make_distribution(values: list[Any]) -> Any:
    distributions = import_extra("optuna.distributions", "the importance of settings")
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and len(set(values)) > 2:
        log = min(values) > 0 and max(values) / min(values) > 20
        return distributions.FloatDistribution(min(values), max(values), log=log)
    return distributions.CategoricalDistribution(sorted(set(values), key=str))
