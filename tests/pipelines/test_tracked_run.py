"""Metrics reach MLflow once and in order from a thread, with a slow or restarted server and bounded memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines.tracking import run as tracking_run
from pipelines.tracking.client import create_client
from pipelines.tracking.run import MAX_BUFFERED_POINTS, TrackedRun
from pipelines.tracking.system_metrics import sample_system_metrics
from presto_core.config.sections import TrackingConfig
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.servers.mlflow_server import MlflowServer
from tests.support.processes import wait_for

Row = tuple[int, dict[str, float]]
PATIENCE_S = 120


def rows(first: int, last: int) -> list[Row]:
    return [(step, {"dsm_loss": 1 / step, "grad_norm": float(step)}) for step in range(first, last + 1)]


def run_at(uri: str) -> TrackedRun:
    client, _ = create_client(TrackingConfig(uri=uri))
    return TrackedRun(client, client.create_run("0").info.run_id)


def points(run: TrackedRun, uri: str, name: str = "dsm_loss") -> list[tuple[int, float]]:
    """Return the points that the server stored, in the order of arrival, without any proxy."""
    client, _ = create_client(TrackingConfig(uri=uri))
    return [(p.step, p.value) for p in client.get_metric_history(run.mlflow_id, name)]


def make_points(first: int, last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(first, last + 1)]


@pytest.mark.slow
@pytest.mark.services
def test_a_killed_server_loses_and_duplicates_nothing(own_mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch):
    """kill -9 twice, once with requests in flight; points are compared one by one, in the order of logging."""
    monkeypatch.setattr(tracking_run, "PAUSE_S", 0.5)
    monkeypatch.setattr(tracking_run, "FLUSH_EVERY_S", 0.05)
    run = run_at(own_mlflow.uri)
    warned = threading.Event()

    def kill_once_warned() -> None:
        warned.wait(PATIENCE_S)
        own_mlflow.kill()

    for step, metrics in rows(1, 900):
        run.log(step, metrics)
        if step == 300:
            assert wait_for(lambda: bool(points(run, own_mlflow.uri)), PATIENCE_S)
            own_mlflow.kill()
        if step == 500:
            own_mlflow.start()
        if step == 600:
            killer = threading.Thread(target=kill_once_warned)
            killer.start()
        if step == 700:
            warned.set()
            killer.join()
            own_mlflow.start()
    run.finish()
    assert points(run, own_mlflow.uri) == make_points(1, 900)
    assert [step for step, _ in points(run, own_mlflow.uri, "grad_norm")] == list(range(1, 901))
    client, _ = create_client(TrackingConfig(uri=own_mlflow.uri))
    assert client.get_run(run.mlflow_id).info.status == "FINISHED"


@pytest.mark.services
def test_a_server_that_hangs_delays_nothing(mlflow_server: str):
    """Three requests stall for longer than it takes to log all rows."""
    with FaultProxy(mlflow_server) as proxy:
        run = run_at(proxy.endpoint)
        proxy.plan(Fault.STALL, times=3, seconds=1.5)
        began = threading.Event()
        original = run.client.log_batch

        def signal_and_call(*args: object, **named: object) -> object:
            began.set()
            return original(*args, **named)

        run.client.log_batch = signal_and_call
        for step, metrics in rows(1, 2000):
            run.log(step, metrics)
        assert proxy.injected[Fault.STALL] <= 1  # all rows were buffered before the first response
        run.finish()
        assert began.is_set()
    assert points(run, mlflow_server) == make_points(1, 2000)


@pytest.mark.services
def test_lost_responses_duplicate_nothing(mlflow_server: str, monkeypatch: pytest.MonkeyPatch):
    """The server stores the points, but the client gets an error."""
    monkeypatch.setattr(tracking_run, "PAUSE_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with FaultProxy(mlflow_server) as proxy:
        run = run_at(proxy.endpoint)
        for step, metrics in rows(1, 50):
            run.log(step, metrics)
        run.flush_all()
        proxy.plan(Fault.RESET, times=2, path="log-batch")
        for step, metrics in rows(51, 100):
            run.log(step, metrics)
        run.finish()
    assert points(run, mlflow_server) == make_points(1, 100)


def test_a_point_sent_twice_is_one_point(workdir: Path):
    from mlflow.entities import Metric

    run = run_at("")
    for _ in range(2):
        run.client.log_batch(run.mlflow_id, metrics=[Metric("x", 1.0, 1000, 3), Metric("x", 2.0, 1001, 4)])
    assert points(run, "", "x") == [(3, 1.0), (4, 2.0)]


def test_rows_beyond_the_buffer_come_from_the_stored_rows_in_order(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking_run, "MAX_BUFFERED_POINTS", 100)
    run = run_at("")
    stored: list[Row] = []
    run.stored_rows = lambda: stored
    silent = run.client.log_batch
    monkeypatch.setattr(run.client, "log_batch", lambda *args, **named: (_ for _ in ()).throw(OSError("down")))
    for row in rows(1, 500):
        stored.append(row)
        run.log(*row)
        assert len(run._points) <= 100 + 2
    monkeypatch.setattr(run.client, "log_batch", silent)
    for row in rows(501, 600):  # the server is back, and later rows must not overtake
        stored.append(row)
        run.log(*row)
    run.finish()
    assert points(run, "") == make_points(1, 600)
    assert MAX_BUFFERED_POINTS > 100


def test_after_an_overflow_mlflow_catches_up_while_the_run_goes_on_and_keeps_what_is_stored_nowhere_else(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking_run, "MAX_BUFFERED_POINTS", 100)
    monkeypatch.setattr(tracking_run, "CATCH_UP_EVERY_S", 0)
    run, stored = run_at(""), list[Row]()
    run.stored_rows = lambda: stored
    with monkeypatch.context() as away:
        away.setattr(run.client, "log_batch", lambda *args, **named: (_ for _ in ()).throw(OSError("down")))
        for row in rows(1, 300):
            run.log(*row)
            run.log(row[0], {"system/load": 1.0})
            assert len(run._points) <= 2 * 100 + 2
        stored += rows(1, 250)  # up to the last checkpoint
    assert run.flush()
    assert points(run, "") == make_points(1, 250)
    run.log(301, {"dsm_loss": 1 / 301})
    stored += rows(251, 300)
    assert run.flush()
    assert points(run, "") == make_points(1, 300)
    stored += rows(301, 310)
    run.finish()
    assert points(run, "") == make_points(1, 310)
    load = points(run, "", "system/load")
    assert [step for step, _ in load] == list(range(1, len(load) + 1))
    assert len(load) > 50


def test_a_resumed_run_sends_only_what_is_new(workdir: Path):
    first = run_at("")
    for row in rows(1, 40):
        first.log(*row)
    first.fail("KILLED")
    again = TrackedRun(first.client, first.mlflow_id)
    for row in rows(20, 60):
        again.log(*row)
    again.finish()
    assert points(again, "") == make_points(1, 60)


def test_the_machine_is_monitored_and_the_axis_continues_after_a_resume(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run = run_at("")
    with sample_system_metrics(run, int((time.time() - 5000) * 1000)):
        assert wait_for(lambda: bool(run._sender), PATIENCE_S)
    run.finish()
    found = points(run, "", "system/cpu_utilization_percentage")
    assert found[0][0] >= 5000
    assert all(0 <= value <= 100 for _, value in found)


def test_nothing_waits_in_a_thread_after_the_end(workdir: Path):
    before = {thread.ident for thread in threading.enumerate()}
    run = run_at("")
    run.log(1, {"x": 1.0})
    run.finish()
    mine = [t for t in threading.enumerate() if t.ident not in before and t.name == "mlflow-sender"]
    for thread in mine:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
