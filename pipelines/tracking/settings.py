"""A run's settings as MLflow's parameters; one too long for a parameter is kept whole in a file of the run."""

from __future__ import annotations

import json
import re
from typing import Any

from pipelines.redaction import redact_items
from presto_core.config.loader import flatten
from presto_core.config.stage import StageConfig

WHOLE_SETTINGS = "whole_settings.json"  # artifact of a run
MAX_VALUE, MAX_KEY, MAX_PER_REQUEST = 6000, 250, 100  # MLflow's limits; it cuts longer values without a word
_KEY = re.compile(r"[\w\-. :/]+")


def log_settings(client: Any, mlflow_id: str, config: StageConfig) -> None:
    """Log all settings but those of where a stage runs; safe to repeat."""
    from mlflow.entities import Param

    flat = flatten(config.model_dump(mode="json", exclude={"storage", "tracking", "submit"}))
    values = redact_items({key: v if isinstance(v, str) else json.dumps(v) for key, v in flat.items()})
    whole = {key: value for key, value in values.items() if len(value) > MAX_VALUE or not _is_key(key)}
    if whole:
        client.log_dict(mlflow_id, whole, WHOLE_SETTINGS)
    params = [Param(key, cut_value(value)) for key, value in values.items() if _is_key(key)]
    for start in range(0, len(params), MAX_PER_REQUEST):
        client.log_batch(mlflow_id, params=params[start : start + MAX_PER_REQUEST])


def cut_value(value: str, limit: int = MAX_VALUE) -> str:
    """Return a value that MLflow takes: the beginning of a long one, with its length and where the whole is."""
    if len(value) <= limit:
        return value
    note = f"… [cut: {len(value)} characters, the whole is in the artifact {WHOLE_SETTINGS}]"
    return value[: limit - len(note)] + note


def _is_key(key: str) -> bool:
    return len(key) <= MAX_KEY and _KEY.fullmatch(key) is not None and not key.startswith("/") and ".." not in key
