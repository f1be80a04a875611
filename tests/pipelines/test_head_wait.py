"""A command whose Ray cluster has no head for a while: with `--wait` it starts again when there is one.

`test_chaos_ray.py` does it with a real cluster.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from infra.cli.dispatch import dispatch
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.cluster import head_wait
from pipelines.cluster.head_wait import MAX_SHORT, NODES_BACK_S, run_while_head_returns
from pipelines.cluster.session import ClusterError, HeadAwayError, answers, ray_session
from pipelines.storage.local_s3 import find_free_ports
from presto_core.config.loader import load_config
from presto_core.config.schema import CorpusStage
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_wait, "POLL_S", 0.02)


class Head:
    """A port at which connections are accepted, or not."""

    def __init__(self) -> None:
        (self.port,) = find_free_ports(1)
        self.address, self.listener = f"127.0.0.1:{self.port}", socket.socket()

    def start(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))

    def stop(self) -> None:
        self.listener.close()


@pytest.fixture
def head() -> Iterator[Head]:
    made = Head()
    yield made
    made.stop()


def make_config(head: Head, *, wait: bool = True) -> ClusterConfig:
    return ClusterConfig(address=head.address, wait_for_run=wait)


def fail_until_back(
    head: Head, seen: list[ClusterConfig], *, was_joined: bool = True
) -> Callable[[ClusterConfig], None]:
    def work(config: ClusterConfig) -> None:
        seen.append(config)
        if not answers(head.address):
            raise HeadAwayError("lost", head.address, was_joined=was_joined)

    return work


def test_work_starts_again_when_the_head_is_back(head: Head, capfd: pytest.CaptureFixture[str]):
    """And then waits for the other nodes, which come one by one."""
    seen: list[ClusterConfig] = []
    waiting = threading.Thread(target=run_while_head_returns, args=(fail_until_back(head, seen), make_config(head)))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    assert len(seen) == 1
    head.start()
    waiting.join(30)
    assert not waiting.is_alive()
    first, second = seen
    assert (first.wait_seconds, second.wait_seconds) == (0, NODES_BACK_S)
    assert "lost; waiting for the head" in capfd.readouterr().err


def test_without_wait_the_command_ends(head: Head):
    seen: list[ClusterConfig] = []
    with pytest.raises(HeadAwayError):
        run_while_head_returns(fail_until_back(head, seen), make_config(head, wait=False))
    assert len(seen) == 1


def test_a_head_that_is_lost_again_and_again_is_given_up(head: Head):
    head.start()
    calls: list[ClusterConfig] = []

    def work(config: ClusterConfig) -> None:
        calls.append(config)
        raise HeadAwayError("lost", head.address, was_joined=True)

    with pytest.raises(HeadAwayError):
        run_while_head_returns(work, make_config(head))
    assert len(calls) == MAX_SHORT + 1


def test_other_errors_are_not_repeated(head: Head):
    calls: list[ClusterConfig] = []

    def work(config: ClusterConfig) -> None:
        calls.append(config)
        raise ClusterError("too small")

    with pytest.raises(UserError, match="too small"):
        run_while_head_returns(work, make_config(head))
    assert len(calls) == 1


def test_a_command_waits_for_a_head_that_is_not_there_yet(head: Head, monkeypatch: pytest.MonkeyPatch):
    """As `presto corpus build cluster.wait_for_run=true` would: the session itself finds out."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's session may be open in this process
    keys = {"cluster.address": head.address, "cluster.wait_for_run": True}
    config = load_config(CorpusStage, None, keys)
    refused, done = threading.Event(), threading.Event()

    def execute() -> None:
        if answers(head.address):
            done.set()
            return
        try:
            with ray_session(config.cluster, cpus=1):
                pytest.fail("there is no head")
        except HeadAwayError:
            refused.set()
            raise

    command = StageCommand("corpus", config, execute=execute)
    waiting = threading.Thread(target=dispatch, args=(command,), kwargs={"on": LOCAL, "dry_run": False})
    waiting.start()
    assert refused.wait(60)
    assert not done.is_set()
    head.start()
    assert done.wait(60)
    waiting.join(60)
    assert not waiting.is_alive()
