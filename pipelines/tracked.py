"""One MLflow run of a stage: rows of metrics reach it once each, however often the run or the server is interrupted."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from presto_core.config.errors import UserError

BATCH = 500  # metrics a request; MLflow takes 1000
FLUSH_EVERY_S = 5
PAUSE_S = 15  # before it is tried again with a server that did not answer, as a try may take some seconds itself
PATIENCE_S = 90  # at the end of a run, for a server that is started again
_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")

Result = TypeVar("Result")


class TrackingError(UserError):
    """MLflow cannot be reached, or does not know what was asked for."""


@dataclass
class TrackedRun:
    """One MLflow run: metrics are sent in batches, and of each metric a step that was sent is never sent again."""

    client: Any
    mlflow_id: str
    _buffer: list[tuple[int, str, float]] = field(default_factory=list)
    _sent: dict[str, int] = field(default_factory=dict)
    _next_flush: float = 0.0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row; it is sent within some seconds, with those that come meanwhile."""
        self._buffer.extend((step, name.replace("/", "."), value) for name, value in metrics.items())
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered; where MLflow does not answer, it is kept for the next time."""
        try:
            self._send()
            self._next_flush = time.monotonic() + FLUSH_EVERY_S
        except Exception as error:  # any of MLflow's, requests' or SQLAlchemy's: tracking must not end a training run
            self._sent.clear()  # an answer may have got lost: ask the server what it has
            self._next_flush = time.monotonic() + PAUSE_S
            logging.getLogger(__name__).warning("MLflow did not take metrics, they are kept: %s", error)

    def _send(self) -> None:
        from mlflow.entities import Metric

        now, rows = int(time.time() * 1000), []
        reached: dict[str, int] = {}
        for step, name, value in self._buffer:
            if step > reached.get(name, self._last_sent(name)):
                reached[name] = step
                rows.append(Metric(name, value, now, step))
        for start in range(0, len(rows), BATCH):
            self.client.log_batch(self.mlflow_id, metrics=rows[start : start + BATCH])
        self._sent |= reached
        self._buffer.clear()

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in order."""
        self.settle()
        points = patiently(lambda: self.client.get_metric_history(self.mlflow_id, name.replace("/", ".")))
        return sorted((p.step, p.value) for p in points)

    def settle(self) -> None:
        """Send all that is buffered, waiting for MLflow if need be.

        Raises:
            TrackingError: it does not answer for a while.
        """
        patiently(self._send)

    def attach(self, path: Path) -> None:
        """Store a file with the run: a plot, a report, a sound."""
        patiently(lambda: self.client.log_artifact(self.mlflow_id, str(path)))

    def finish(self) -> None:
        self.settle()
        patiently(lambda: self.client.set_terminated(self.mlflow_id, status="FINISHED"))

    def give_up(self, status: str) -> None:
        """Say that the run ended early, if MLflow answers: the reason why it did must not be hidden by another."""
        self.flush()
        with suppress(Exception):
            self.client.set_terminated(self.mlflow_id, status=status)

    def _last_sent(self, name: str) -> int:
        if name not in self._sent:
            points = self.client.get_metric_history(self.mlflow_id, name)
            self._sent[name] = max((p.step for p in points), default=-1)
        return self._sent[name]


def patiently(action: Callable[[], Result]) -> Result:
    """Do something in MLflow, again for a while if it does not answer.

    Raises:
        TrackingError: it does not answer in that time.
    """
    from mlflow.exceptions import MlflowException

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, MlflowException) and error.error_code in _PASSING

    waits = wait_exponential(multiplier=0.5, max=5)
    retrying = Retrying(stop=stop_after_delay(PATIENCE_S), wait=waits, retry=retry_if_exception(may_pass), reraise=True)
    try:
        return retrying(action)
    except MlflowException as error:
        if not may_pass(error):
            raise
        why = without_password(" ".join(str(error).split())[:200])
        raise TrackingError(
            f"MLflow did not answer for {PATIENCE_S} s: {why}; start it again and run the same command"
        ) from error


def without_password(text: str) -> str:
    """A URI, or a text with some, that may be shown: user and password between :// and @ are left out."""
    return re.sub(r"://[^/\s]*@", "://", text)  # a password may hold an @
