"""Calls of MLflow that outlast a restart of its server, and what an error of it says in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, stop_after_delay, wait_exponential

from pipelines.console import console
from pipelines.redaction import redact
from presto_core.errors import UserError

RETRY_TIMEOUT_S = 180  # for a server that is being restarted, or a database that another process has locked
ANNOUNCED_ATTEMPT = 3  # about two seconds of waiting for a server, a minute for a locked database
TRANSIENT_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
# MLflow looks for a data set's row and then inserts it: of two runs that start at once, one may insert it in between,
# and a second attempt finds it. The words are those of SQLite, PostgreSQL, MySQL and SQL Server
TAKEN_ROW = re.compile(r"unique constraint|duplicate (entry|key)", re.IGNORECASE)
TAKEN_ROW_ATTEMPTS = 5

Result = TypeVar("Result")


class TrackingError(UserError):
    """MLflow cannot be reached, or does not have the requested entity."""


def with_retries(action: Callable[[], Result]) -> Result:
    """Run an MLflow call, with retries for `RETRY_TIMEOUT_S`, saying once that it waits.

    Raises:
        TrackingError: MLflow does not answer in that time.
    """
    from mlflow.exceptions import MlflowException

    from pipelines.tracking.s3_credentials import follow_credentials  # imports pyarrow

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, MlflowException) and error.error_code in TRANSIENT_CODES

    def retries(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, MlflowException) and TAKEN_ROW.search(str(error)):
            return state.attempt_number < TAKEN_ROW_ATTEMPTS
        return error is not None and is_transient(error)

    def announce(state: RetryCallState) -> None:
        if state.attempt_number == ANNOUNCED_ATTEMPT and state.outcome:
            why = explain_mlflow_error(state.outcome.exception())
            console.print(f"MLflow does not answer, waiting up to {RETRY_TIMEOUT_S} s: {why}", markup=False)

    waits = wait_exponential(multiplier=0.5, max=5)
    retrying = Retrying(
        stop=stop_after_delay(RETRY_TIMEOUT_S),
        wait=waits,
        retry=retries,
        before_sleep=announce,
        reraise=True,
    )

    def act() -> Result:
        follow_credentials()
        return action()

    try:
        return retrying(act)
    except MlflowException as error:
        if not is_transient(error):
            raise
        raise TrackingError(
            f"MLflow does not answer for {RETRY_TIMEOUT_S} s: {explain_mlflow_error(error)}; restart it and re-run the "
            "same command"
        ) from error


def explain_mlflow_error(error: BaseException | None) -> str:
    """Return the first line of an error of MLflow, or of SQLAlchemy below it, without the statement and secrets."""
    message = re.split(r"\[SQL:|\(Background on this error", str(error))[0]
    return redact(" ".join(message.split())[:200].rstrip(". "))
