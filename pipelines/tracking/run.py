"""One MLflow run of a stage: rows of metrics reach it once each, however slow or interrupted run and server are."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from pipelines.redaction import redact
from presto_core.errors import UserError

BATCH = 500  # metrics a request; MLflow takes 1000
FLUSH_EVERY_S = 5
PAUSE_S = 15  # before it is tried again with a server that did not answer, as a try may take some seconds itself
RETRY_TIMEOUT_S = 90  # at the end of a run, for a server that is started again
MAX_BUFFERED_POINTS = 200_000  # some 30 MB; what comes beyond is read from the rows beside the checkpoints later
GENERATOR_STEP = "generator_step"
_GENERATOR_PREFIXES = ("dmd_", "gan_", "generator_", "x0_")
TRANSIENT_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")

Result = TypeVar("Result")


class TrackingError(UserError):
    """MLflow cannot be reached, or does not know what was asked for."""


class Point(NamedTuple):
    """One value of one metric. MLflow takes a point that is sent twice, with the same time, for one."""

    step: int
    name: str
    value: float
    timestamp_ms: int


@dataclass
class TrackedRun:
    """One MLflow run. `log` only takes rows; a thread sends them, so that a slow server slows nobody.

    Of each metric a step that was sent is never sent again, and rows arrive in order.

    Attributes:
        stored: rows kept beside checkpoints, to be read again where more came than memory may hold.
    """

    client: Any
    mlflow_id: str
    stored_rows: Callable[[], Iterable[tuple[int, dict[str, float]]]] | None = None
    _points: deque[Point] = field(default_factory=deque)
    _sent: dict[str, int] | None = None
    _overflowed: bool = False
    _closed: bool = False
    _send_lock: threading.RLock = field(default_factory=threading.RLock)
    _have_points: threading.Event = field(default_factory=threading.Event)
    _flush_now: threading.Event = field(default_factory=threading.Event)
    _sender: threading.Thread | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take a row; returns at once, whatever the server does.

        `step` counts total steps. Where `generator_step` is among the metrics, those of the generator are logged a
        second time on that axis, as generator_step.<name>.
        """
        if len(self._points) >= MAX_BUFFERED_POINTS and self.stored_rows:
            self._overflowed = True  # and later rows must not overtake those that were left out
        if self._overflowed or self._closed:
            return
        self._points.extend(_make_points(step, metrics))
        if self._sender is None:
            self._sender = threading.Thread(target=self._run_sender, name="mlflow-sender", daemon=True)
            self._sender.start()
        self._have_points.set()

    def _run_sender(self) -> None:
        """What the thread does: send what there is, then wait for more; after a failure, wait longer."""
        while self._have_points.wait() and not self._closed:
            self._have_points.clear()
            if not self.flush():
                self._have_points.set()
                self._flush_now.wait(PAUSE_S)
            else:
                self._flush_now.wait(FLUSH_EVERY_S)

    def flush(self) -> bool:
        """Send what is held; False where MLflow does not answer: it is kept for the next time."""
        try:
            self._send()
        except Exception as error:  # any of MLflow's, requests' or SQLAlchemy's: tracking must not end a training run
            message = redact(" ".join(str(error).split())[:300])
            logging.getLogger(__name__).warning("MLflow did not take metrics, they are kept: %s", message)
            return False
        return True

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._send_lock:
            try:
                while points := list(islice(self._points, BATCH)):
                    new = self._select_unsent(points)
                    if new:
                        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in new]
                        self.client.log_batch(self.mlflow_id, metrics=metrics)
                    self._mark_sent(new)
                    for _ in points:
                        self._points.popleft()
            except BaseException:
                self._sent = None  # an answer may have got lost: ask the server what it has
                raise

    def _select_unsent(self, points: list[Point]) -> list[Point]:
        """Points behind the last one of their metric."""
        if self._sent is None:
            # the only way to know the steps of all metrics without their histories, which MLflow itself takes
            latest = self.client.get_run(self.mlflow_id).data._metric_objs
            self._sent = {metric.key: metric.step for metric in latest}
        last_steps: dict[str, int] = {}
        new = []
        for point in points:
            if point.step > last_steps.get(point.name, self._sent.get(point.name, -1)):
                last_steps[point.name] = point.step
                new.append(point)
        return new

    def _mark_sent(self, points: list[Point]) -> None:
        if self._sent is not None:
            self._sent |= {point.name: point.step for point in points}

    def read_history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in order."""
        self.flush_all()
        points = with_retries(lambda: self.client.get_metric_history(self.mlflow_id, metric_name(name)))
        return sorted((p.step, p.value) for p in points)

    def flush_all(self) -> None:
        """Send all that was taken, waiting for MLflow if need be.

        Raises:
            TrackingError: it does not answer for a while.
        """
        with_retries(self._send)
        if self._overflowed and self.stored_rows:
            self._overflowed = False
            for step, metrics in self.stored_rows():
                self._points.extend(_make_points(step, metrics))
                if len(self._points) >= MAX_BUFFERED_POINTS:
                    with_retries(self._send)
            with_retries(self._send)

    def attach(self, path: Path) -> None:
        """Store a file with the run: a plot, a report, a sound."""
        with_retries(lambda: self.client.log_artifact(self.mlflow_id, str(path)))

    def finish(self) -> None:
        self.flush_all()
        self._close()
        with_retries(lambda: self.client.set_terminated(self.mlflow_id, status="FINISHED"))

    def fail(self, status: str) -> None:
        """Say that the run ended early, if MLflow answers: the reason why it did must not be hidden by another."""
        self.flush()
        self._close()
        with suppress(Exception):
            self.client.set_terminated(self.mlflow_id, status=status)

    def _close(self) -> None:
        self._closed = True
        self._have_points.set()
        self._flush_now.set()


def metric_name(name: str) -> str:
    """A metric's name in MLflow: slashes would make groups, which only those of the system are."""
    return name if name.startswith("system/") else name.replace("/", ".")


def _make_points(step: int, metrics: dict[str, float]) -> list[Point]:
    now = int(time.time() * 1000)
    points = [Point(step, metric_name(name), value, now) for name, value in metrics.items()]
    if GENERATOR_STEP in metrics:
        generator_step = int(metrics[GENERATOR_STEP])
        points += [
            Point(generator_step, f"{GENERATOR_STEP}.{metric_name(name)}", value, now)
            for name, value in metrics.items()
            if name.startswith(_GENERATOR_PREFIXES) and name != GENERATOR_STEP
        ]
    return points


def with_retries(action: Callable[[], Result]) -> Result:
    """Do something in MLflow, again for a while if it does not answer.

    Raises:
        TrackingError: it does not answer in that time.
    """
    from mlflow.exceptions import MlflowException

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, MlflowException) and error.error_code in TRANSIENT_CODES

    waits = wait_exponential(multiplier=0.5, max=5)
    retrying = Retrying(
        stop=stop_after_delay(RETRY_TIMEOUT_S), wait=waits, retry=retry_if_exception(is_transient), reraise=True
    )
    try:
        return retrying(action)
    except MlflowException as error:
        if not is_transient(error):
            raise
        why = redact(" ".join(str(error).split())[:200])
        raise TrackingError(
            f"MLflow did not answer for {RETRY_TIMEOUT_S} s: {why}; start it again and run the same command"
        ) from error
