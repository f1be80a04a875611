"""A lease has one holder: refused to others, taken over from the dead, kept through slow work, in both stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import lease as lease_module
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import LeaseHeldError, LeaseLostError, describe_holder, hold_lease
from pipelines.storage.lease_file import Holder, make_holder, read_newest
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from tests.support.processes import PATIENCE_S, wait_for

HOLD = """
import sys, time
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import hold_lease
with hold_lease(open_folder(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(600)
"""
STORES = ["local", pytest.param("s3", marks=pytest.mark.services)]


@pytest.fixture(params=STORES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return open_folder(str(tmp_path / "lease"))
    request.getfixturevalue("object_store")
    return open_folder(f"s3://latents/leases/{tmp_path.name}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew and expire in seconds; S3 dates its objects in whole seconds."""
    monkeypatch.setattr(lease_module, "RENEW_S", 0.3)
    monkeypatch.setattr(lease_module, "EXPIRY_S", 2.5)
    monkeypatch.setattr(lease_module, "POLL_S", 0.1)
    monkeypatch.setattr(lease_module, "ANNOUNCE_S", 0.2)


@pytest.fixture
def other(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLD, folder.uri]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(PATIENCE_S)


def leave_lease(folder: Folder, holder: Holder, epoch: int = 1) -> None:
    """Leave what a holder leaves that was killed."""
    write_bytes(folder, f"{epoch:06d}.json", json.dumps(holder.__dict__).encode())


def make_distant(**fields: Any) -> Holder:
    return replace(make_holder(), host="far", machine="far/boot", pid=7, **fields)


def read_epochs(folder: Folder) -> list[str]:
    return [info.base_name for info in folder.list_files(missing_ok=True)]


def test_a_second_holder_is_refused_until_the_first_ends(folder: Folder):
    with hold_lease(folder, "run x") as first:
        began = time.monotonic()
        with pytest.raises(LeaseHeldError) as refused, hold_lease(folder, "run x"):
            pytest.fail("both hold it")
        assert time.monotonic() - began < lease_module.RENEW_S
        for named in ("run x", str(os.getpid()), first.holder.since):
            assert named in str(refused.value)
        assert describe_holder(folder) == str(first.holder)
        first.check()
    assert describe_holder(folder) == ""
    with hold_lease(folder, "run x") as second:
        assert second.epoch == first.epoch + 1
    assert read_epochs(folder) == ["000002.json"]


def test_a_process_elsewhere_on_this_machine_is_refused_and_taken_over_once_killed(
    folder: Folder, other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(LeaseHeldError, match=str(other.pid)), hold_lease(folder, "work"):
        pytest.fail("both hold it")
    other.send_signal(signal.SIGSTOP)  # it may go on at any moment, and can be seen to exist
    with pytest.raises(LeaseHeldError, match=str(other.pid)), hold_lease(folder, "work"):
        pytest.fail("both hold it")
    other.send_signal(signal.SIGKILL)
    other.wait(PATIENCE_S)
    with hold_lease(folder, "work") as mine:
        assert mine.epoch == 2
    assert str(other.pid) in capsys.readouterr().err


def test_a_process_does_not_wait_for_a_lease_that_it_could_not_release(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    """The store was away when its work ended; it is back when the process works on again."""
    with hold_lease(folder, "work") as first:
        monkeypatch.setattr(first, "_write", _refuse)
        with pytest.raises(LeaseHeldError), hold_lease(folder, "work"):
            pass
    entry = read_newest(folder)
    assert entry
    assert entry.holder
    assert not entry.holder.released
    with hold_lease(folder, "work") as second:
        assert second.epoch == first.epoch + 1


def _refuse(holder: Holder) -> None:
    raise StoreError("the store is away")


def test_a_number_that_another_process_has_now_is_not_the_holder(tmp_path: Path):
    folder = open_folder(str(tmp_path))
    leave_lease(folder, replace(make_holder(), pid=os.getppid(), born=1.0))
    with hold_lease(folder, "work") as mine:
        assert mine.epoch == 2


def test_a_holder_on_another_machine_that_was_killed_expires(
    folder: Folder, quick: None, capsys: pytest.CaptureFixture[str]
):
    leave_lease(folder, make_distant())
    began = time.monotonic()
    with hold_lease(folder, "work") as mine:
        assert mine.epoch == 2
        assert time.monotonic() - began > 1.0
    assert "waiting for process 7 on far" in capsys.readouterr().err


def test_a_lease_that_expired_long_ago_is_taken_at_once(tmp_path: Path):
    folder = open_folder(str(tmp_path))
    leave_lease(folder, make_distant(), epoch=4)
    past = time.time() - 2 * lease_module.EXPIRY_S
    os.utime(tmp_path / "000004.json", (past, past))
    with hold_lease(folder, "work") as mine:
        assert mine.epoch == 5


def test_a_holder_on_another_machine_that_renews_is_alive(tmp_path: Path, quick: None):
    folder, stop = open_folder(str(tmp_path)), threading.Event()

    def renew() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            leave_lease(folder, make_distant(renewals=number, nonce="n", since="yesterday"))

    leave_lease(folder, make_distant(nonce="n", since="yesterday"))
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseHeldError, match="far since yesterday"), hold_lease(folder, "work"):
            pytest.fail("both hold it")
    finally:
        stop.set()
        thread.join()


def test_slow_work_keeps_its_lease_and_others_wait_for_it(folder: Folder, quick: None):
    ends: list[str] = []

    def wait_for_it() -> None:
        with hold_lease(folder, "work", wait=True):
            ends.append("second")

    with hold_lease(folder, "work") as mine, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_it)
        time.sleep(lease_module.EXPIRY_S + 1.0)  # much longer than without a renewal
        mine.check()
        assert mine.holder.renewals > 1
        ends.append("first")
        mine.release()
        waiting.result(PATIENCE_S)
    assert ends == ["first", "second"]


def test_a_holder_that_was_taken_over_notices_and_neither_renews_nor_releases(folder: Folder, quick: None):
    noticed = threading.Event()
    with hold_lease(folder, "work", on_lost=noticed.set) as mine:
        leave_lease(folder, make_distant(), epoch=mine.epoch + 1)
        assert noticed.wait(PATIENCE_S)
        with pytest.raises(LeaseLostError, match="process 7 on far"):
            mine.check()
    assert json.loads(read_bytes(folder, "000002.json"))["released"] is False


def test_of_many_takers_at_once_one_wins(folder: Folder):
    leave_lease(folder, replace(make_holder(), pid=os.getppid(), born=1.0))
    barrier, refused, epochs = threading.Barrier(6), threading.Semaphore(0), list[int]()

    def take(number: int) -> bool:
        barrier.wait(PATIENCE_S)
        try:
            with hold_lease(folder, "work") as mine:
                epochs.append(mine.epoch)
                for _ in range(5):  # a slow taker must find the lease held, not released
                    assert refused.acquire(timeout=PATIENCE_S)
                return True
        except LeaseHeldError:
            refused.release()
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1
    assert epochs == [2]


def test_a_taker_that_looked_before_others_came_and_went_does_not_win(folder: Folder):
    leave_lease(folder, replace(make_holder(), released=True))
    before = read_newest(folder)
    for _ in range(2):  # epochs 2 and 3; the file of 2 is gone
        with hold_lease(folder, "work"):
            pass
    assert before is not None
    assert lease_module._take(folder, "work", before) is None
    assert [info.base_name for info in folder.list_files()] == ["000003.json"]


def test_a_damaged_lease_expires(tmp_path: Path, quick: None):
    write_bytes(open_folder(str(tmp_path)), "000001.json", b"{half")
    with hold_lease(open_folder(str(tmp_path)), "work") as mine:
        assert mine.epoch == 2


def test_a_folder_that_was_deleted_with_the_work_is_not_made_again(tmp_path: Path):
    folder = open_folder(str(tmp_path / "runs/lease"))
    with hold_lease(folder, "work") as mine:
        mine.stop()
        folder.delete()
    assert not (tmp_path / "runs/lease").exists()
    assert wait_for(lambda: not any(t.name == "lease" for t in threading.enumerate()), PATIENCE_S)


def test_the_time_is_the_stores_not_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = open_folder(str(tmp_path))
    leave_lease(folder, make_distant())
    past = time.time() - lease_module.EXPIRY_S - 5
    os.utime(tmp_path / "000001.json", (past, past))
    monkeypatch.setattr(time, "time", lambda: past - 1e6)  # a clock that is wrong
    with hold_lease(folder, "work") as mine:
        assert mine.epoch == 2
