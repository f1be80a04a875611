"""Repeat changes of a registered model that conflict with those of other writers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

CONFLICT_TIMEOUT_S = 60  # for conflicts between writers of one model
_CLASH = ("IntegrityError", "UniqueViolation", "UNIQUE constraint")  # two writers inserted the same row
_CONFLICT = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def retry_conflicts(action: Callable[[], Any]) -> Any:
    """Call `action`, and again if it conflicts with other writers of the same model."""
    from mlflow.exceptions import MlflowException

    def is_conflict(error: BaseException) -> bool:
        if not isinstance(error, MlflowException):
            return False
        return error.error_code in _CONFLICT or any(sign in str(error) for sign in _CLASH)

    waits = wait_random_exponential(multiplier=0.1, max=3)
    return Retrying(
        stop=stop_after_delay(CONFLICT_TIMEOUT_S), wait=waits, retry=retry_if_exception(is_conflict), reraise=True
    )(action)
