"""One MLflow run of a stage: every row of metrics arrives exactly once, even if run or server is interrupted."""

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
from typing import Any, NamedTuple

from pipelines.storage.fence import LeaseLostError
from pipelines.tracking.retry import TRANSIENT_CODES as TRANSIENT_CODES
from pipelines.tracking.retry import TrackingError as TrackingError
from pipelines.tracking.retry import explain_mlflow_error as explain_mlflow_error
from pipelines.tracking.retry import with_retries as with_retries

BATCH = 500  # metrics per request; MLflow accepts 1000
FLUSH_EVERY_S = 5
PAUSE_S = 15  # before the next attempt if the server does not answer; an attempt itself can take some seconds
MAX_BUFFERED_POINTS = 200_000  # some 30 MB; further points are read later from the rows next to the checkpoints
CATCH_UP_EVERY_S = 300  # after the buffer has overflowed: reads what has been stored since
SYSTEM = "system/"  # metrics of the machine, which are stored nowhere else
GENERATOR_STEP = "generator_step"
_GENERATOR_PREFIXES = ("dmd_", "gan_", "generator_", "x0_")


class Point(NamedTuple):
    """One value of one metric; MLflow stores a point that is sent twice, with equal timestamps, once."""

    step: int
    name: str
    value: float
    timestamp_ms: int


@dataclass
class TrackedRun:
    """One MLflow run; `log` buffers rows and a thread sends them, so that a slow server delays nothing.

    Each step of a metric is sent once, and rows arrive in order.

    Attributes:
        stored_rows: reads the rows next to the checkpoints, used after the buffer has overflowed.
        check_holder: raises if another process now continues the run, whose record it then is; called before a write.
    """

    client: Any
    mlflow_id: str
    stored_rows: Callable[[], Iterable[tuple[int, dict[str, float]]]] | None = None
    check_holder: Callable[[], None] = lambda: None
    _points: deque[Point] = field(default_factory=deque)
    _sent: dict[str, int] | None = None
    _overflowed: bool = False
    _caught_up_at: float = 0.0
    _closed: bool = False
    _send_lock: threading.RLock = field(default_factory=threading.RLock)
    _have_points: threading.Event = field(default_factory=threading.Event)
    _flush_now: threading.Event = field(default_factory=threading.Event)
    _sender: threading.Thread | None = None
    _warned: bool = False
    _fenced: bool = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Buffer a row; returns at once, whatever the server does.

        `step` counts total steps. If `generator_step` is among the metrics, those of the generator are also logged
        on that axis, as generator_step.<name>.
        """
        is_stored = self.stored_rows is not None and not all(name.startswith(SYSTEM) for name in metrics)
        if is_stored and len(self._points) >= MAX_BUFFERED_POINTS:
            self._overflowed = True  # later rows must not overtake the dropped ones
        if self._closed or (self._overflowed and is_stored) or len(self._points) >= 2 * MAX_BUFFERED_POINTS:
            return
        self._points.extend(_make_points(step, metrics))
        if self._sender is None:
            self._sender = threading.Thread(target=self._run_sender, name="mlflow-sender", daemon=True)
            self._sender.start()
        self._have_points.set()

    def _run_sender(self) -> None:
        """Run in the thread: send the buffered points, then wait for more; after a failure, wait longer."""
        while self._have_points.wait() and not self._closed:
            self._have_points.clear()
            if not self.flush():
                self._have_points.set()
                self._flush_now.wait(PAUSE_S)
            else:
                self._flush_now.wait(FLUSH_EVERY_S)

    def flush(self) -> bool:
        """Send the buffered points; return False, and keep them, if MLflow does not answer."""
        try:
            self._send()
            if self._overflowed and time.monotonic() - self._caught_up_at >= CATCH_UP_EVERY_S:
                self._send_stored()
        except LeaseLostError:  # whoever holds the run sends them too
            self.fence()
        except Exception as error:  # of MLflow, requests or SQLAlchemy: tracking must not end a training run
            if not self._warned:  # once until it answers again, however long that takes
                message = explain_mlflow_error(error)
                logging.getLogger(__name__).warning("MLflow does not accept metrics, keeping them: %s", message)
            self._warned = True
            return False
        self._warned = False
        return True

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._send_lock:
            try:
                while points := list(islice(self._points, BATCH)):
                    new = self._select_unsent(points)
                    if new:
                        self.check_holder()
                        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in new]
                        self.client.log_batch(self.mlflow_id, metrics=metrics)
                    self._mark_sent(new)
                    for _ in points:
                        self._points.popleft()
            except BaseException:
                self._sent = None  # a response can be lost: ask the server for its last steps
                raise

    def _select_unsent(self, points: list[Point]) -> list[Point]:
        """Return the points after the last sent step of their metric."""
        if self._sent is None:
            # MLflow itself uses this attribute; there is no other way to get all last steps without the histories
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
        """Return (step, value) of one metric, in order."""
        self.flush_all()
        points = with_retries(lambda: self.client.get_metric_history(self.mlflow_id, metric_name(name)))
        return sorted((p.step, p.value) for p in points)

    def flush_all(self) -> None:
        """Send all logged rows, waiting for MLflow if necessary.

        Raises:
            TrackingError: MLflow does not answer for `RETRY_TIMEOUT_S`.
        """
        with_retries(self._send)
        if self._overflowed:
            with_retries(self._send_stored)
            self._overflowed = False

    def _send_stored(self) -> None:
        """Send the stored rows that MLflow does not have yet; safe to repeat.

        The buffer stays closed to rows until the end: those that were dropped since the newest stored one come later.
        """
        with self._send_lock:
            for step, metrics in self.stored_rows() if self.stored_rows else ():
                self._points.extend(_make_points(step, metrics))
                if len(self._points) >= 2 * BATCH:
                    self._send()
            self._send()
            self._caught_up_at = time.monotonic()

    def attach(self, path: Path) -> None:
        """Attach a file to the run: a plot, a report or audio."""
        self.check_holder()
        with_retries(lambda: self.client.log_artifact(self.mlflow_id, str(path)))

    def fence(self) -> None:
        """Write nothing more to MLflow, whose run another process continues."""
        self._fenced = True
        self._points.clear()
        self._close()

    def finish(self) -> None:
        if self._fenced:
            return
        self.flush_all()
        self._close()
        self.check_holder()
        with_retries(lambda: self.client.set_terminated(self.mlflow_id, status="FINISHED"))

    def fail(self, status: str) -> None:
        """Mark the run as ended early, if MLflow answers; its errors must not hide the reason of the end."""
        if self._fenced:
            return
        self.flush()
        self._close()
        with suppress(Exception):
            self.check_holder()
            self.client.set_terminated(self.mlflow_id, status=status)

    def _close(self) -> None:
        self._closed = True
        self._have_points.set()
        self._flush_now.set()


def metric_name(name: str) -> str:
    """Return a metric's name in MLflow, where a slash makes a group; only system metrics are grouped."""
    return name if name.startswith(SYSTEM) else name.replace("/", ".")


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
