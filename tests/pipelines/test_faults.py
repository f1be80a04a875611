"""A real S3 server behind a proxy that breaks connections: transient faults are retried, others are one message."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from pipelines.storage import s3_clients
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts import resumable_read, retry
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, commit, download, read_bytes, read_file, read_manifest, write_bytes
from tests.servers.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.services
BLOCK_BYTES = 2**18
CONTENT = Random(1).randbytes(2 * BLOCK_BYTES + 12345)  # three blocks
LARGE = CONTENT * 25  # two parts of an upload
BREAKING = (Fault.REFUSE, Fault.RESET, Fault.TRUNCATE, Fault.SLOW_DOWN)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(resumable_read, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture
def proxy(object_store: Server) -> Iterator[FaultProxy]:
    with FaultProxy(object_store.endpoint, seed=7) as proxy:
        yield proxy


@pytest.fixture
def direct(object_store: Server, tmp_path) -> Folder:
    return open_folder(f"s3://latents/{tmp_path.name}")


@pytest.fixture
def folder(proxy: FaultProxy, direct: Folder, monkeypatch) -> Folder:
    return open_through(proxy, direct, monkeypatch)


def open_through(proxy: FaultProxy, direct: Folder, monkeypatch) -> Folder:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return open_folder(direct.uri)


def run_concurrently(*actions: Callable[[], Any]) -> list[Any]:
    """Run actions in parallel, because most of their time is waiting, and return their results."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]


def copy_file(folder: Folder, name: str) -> bytes:
    sink = io.BytesIO()
    assert download(folder, name, sink) == blake3(sink.getvalue()).hexdigest()
    return sink.getvalue()


# --- transient faults


# over 10 s: what breaks is tried again after growing pauses, as it is for users
def test_a_few_faults_of_each_kind_are_waited_out(object_store: Server, direct: Folder, monkeypatch) -> None:
    """Three consecutive faults per object: one more than the SDK and the first attempt absorb."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(object_store.endpoint)) for _ in BREAKING]
        folders = [open_through(proxy, direct, monkeypatch).child(fault) for proxy, fault in zip(proxies, BREAKING)]
        run_concurrently(*(partial(use_broken, *case) for case in zip(proxies, folders, BREAKING)))
    for fault in BREAKING:
        assert read_manifest(direct.child(fault))["kind"] == fault
        assert read_bytes(direct.child(fault), "small") == b"1234"
    assert read_bytes(direct.child(Fault.RESET), "large") == LARGE


def use_broken(proxy: FaultProxy, folder: Folder, fault: Fault) -> None:
    write_bytes(folder, "read", CONTENT)
    write_bytes(folder, "copied", CONTENT)
    objects = {"/read": 10_000, "/copied": 10_000, "/small": 2, "json": 9}
    for path, after in objects.items():
        proxy.plan(fault, times=3, path=path, after_bytes=after)
    proxy.plan(Fault.RESET, times=3, path="/large?partNumber", after_bytes=6_000_000)
    read, copy, manifest, _ = run_concurrently(
        lambda: read_bytes(folder, "read"),
        lambda: copy_file(folder, "copied"),
        lambda: commit(folder, {"kind": fault}, {"small": b"1234"}),
        lambda: write_bytes(folder, "large", LARGE) if fault is Fault.RESET else None,
    )
    assert read == copy == CONTENT
    assert read_manifest(folder) == manifest
    assert proxy.injected == {fault: 15 if fault is Fault.RESET else 12}


@pytest.mark.parametrize("last", [0x00, 0xA7])  # the second marks an unwritten byte
def test_an_answer_of_too_few_bytes_is_not_taken(proxy: FaultProxy, folder: Folder, last: int) -> None:
    """Arrow alone accepts it and fills the rest with uninitialized memory."""
    content = CONTENT[:1000] + bytes([last])
    write_bytes(folder, "a", content)
    for missing in (1, 700):
        proxy.plan(Fault.SHORT, times=2, after_bytes=len(content) - missing)
        assert read_bytes(folder, "a") == content
    assert proxy.injected == {Fault.SHORT: 4}


def test_a_file_whose_hash_is_known_takes_one_request(proxy: FaultProxy, folder: Folder) -> None:
    manifest = commit(folder, {}, {"a b+ü.bin": CONTENT})
    before = proxy.requests
    assert read_file(folder, "a b+ü.bin", manifest) == CONTENT
    assert proxy.requests == before + 1


def test_a_file_is_looked_for_in_one_request(proxy: FaultProxy, folder: Folder, direct: Folder) -> None:
    write_bytes(direct, "a b+ü.bin", b"")
    write_bytes(direct, "folder/b", b"")
    for name, there in {"a b+ü.bin": True, "a": False, "a b+ü.bin/c": False, "folder": False}.items():
        before = proxy.requests
        assert folder.exists(name) is there
        assert proxy.requests == before + 1
    for fault in (Fault.REFUSE, Fault.RESET, Fault.SLOW_DOWN):
        proxy.plan(fault, times=1, method="HEAD", path="a%20b")
        assert folder.exists("a b+ü.bin")
        assert proxy.injected[fault] == 1


def test_a_file_of_some_megabytes_is_written_in_one_request(proxy: FaultProxy, folder: Folder, direct: Folder) -> None:
    for name, content in {"a b+ü.bin": CONTENT, "empty": b""}.items():
        before = proxy.requests
        write_bytes(folder, name, content)
        assert proxy.requests == before + 1
        assert read_bytes(direct, name) == content


def test_where_one_request_fails_the_file_is_written_with_care(
    proxy: FaultProxy, folder: Folder, direct: Folder
) -> None:
    for fault in (Fault.REFUSE, Fault.RESET, Fault.SLOW_DOWN):
        proxy.plan(fault, times=1, method="PUT", path=fault, after_bytes=1000)
        write_bytes(folder, fault, CONTENT)
        assert read_bytes(direct, fault) == CONTENT
        assert proxy.injected[fault] == 1


def test_bytes_that_changed_on_the_way_are_read_again(proxy: FaultProxy, folder: Folder) -> None:
    manifest = commit(folder, {}, {"a.bin": CONTENT[:5000]})
    proxy.plan(Fault.ALTER, times=1, after_bytes=100)
    assert read_file(folder, "a.bin", manifest) == CONTENT[:5000]
    proxy.plan(Fault.ALTER, after_bytes=100)
    with pytest.raises(StoreError, match=r"a\.bin.*sha256"):
        read_file(folder, "a.bin", manifest)
    assert proxy.injected == {Fault.ALTER: 4}


def test_a_copy_resumes_where_it_broke(proxy: FaultProxy, folder: Folder) -> None:
    """Of three blocks, the connection breaks in the second: the first is not requested again."""

    class Sink(io.BytesIO):
        def write(self, block: Any) -> int:
            if not self.tell():
                proxy.plan(Fault.RESET, times=3, method="GET", after_bytes=100_000)
            return super().write(block)

    write_bytes(folder, "a", CONTENT)
    before, sink = proxy.requests, Sink()
    assert download(folder, "a", sink) == blake3(CONTENT).hexdigest()
    assert sink.getvalue() == CONTENT
    assert proxy.injected == {Fault.RESET: 3}
    assert proxy.requests - before == (1 + 3) + 3 + 1  # undisturbed; broken; reopened once, as the SDK retries once


def test_an_object_replaced_under_a_reader_is_refused(proxy: FaultProxy, folder: Folder, direct: Folder) -> None:
    class Sink(io.BytesIO):
        def write(self, block: Any) -> int:
            write_bytes(direct, "a", bytes(len(CONTENT)))
            proxy.plan(Fault.RESET, times=2, method="GET")
            return super().write(block)

    write_bytes(folder, "a", CONTENT)
    with pytest.raises(StoreError, match="/a "):
        download(folder, "a", Sink())


# over 10 s: the stall itself
@pytest.mark.slow
def test_a_stall_of_ten_seconds_is_survived(proxy: FaultProxy, folder: Folder) -> None:
    run_concurrently(lambda: write_bytes(folder, "a", CONTENT), lambda: write_bytes(folder, "b", b"1"))
    proxy.plan(Fault.STALL, times=1, seconds=10, path="/a", method="GET", after_bytes=1000)
    proxy.plan(Fault.STALL, times=1, seconds=10, path="/b", method="HEAD")
    proxy.plan(Fault.STALL, times=1, seconds=10, path="/c", method="PUT", after_bytes=1000)
    started = time.monotonic()
    read, small, _ = run_concurrently(
        lambda: read_bytes(folder, "a"), lambda: read_bytes(folder, "b"), lambda: write_bytes(folder, "c", CONTENT)
    )
    assert 10 <= time.monotonic() - started < 30
    assert (read, small, read_bytes(folder, "c")) == (CONTENT, b"1", CONTENT)
    assert proxy.injected == {Fault.STALL: 3}


def test_mixed_faults_leave_every_operation_right(proxy: FaultProxy, folder: Folder, direct: Folder) -> None:
    """Compare some hundred operations of three concurrent users with a dictionary."""
    for fault in (*BREAKING, Fault.SHORT):
        proxy.plan(fault, times=1, after_bytes=300)  # each at least once
    for fault in (*BREAKING, Fault.SHORT):
        proxy.plan(fault, probability=0.05, after_bytes=300)

    def use(user: int) -> int:
        random, known, own = Random(user), dict[str, bytes](), folder.child(str(user))
        for number in range(5):
            name = f"f{random.randrange(5)}"
            if number % 2 == 0:
                known[name] = random.randbytes(random.choice([0, 1, 500, 40_000]))
                write_bytes(own, name, known[name])
            assert own.exists(name) == (name in known)
            assert {info.base_name: info.size for info in own.list_files()} == {n: len(c) for n, c in known.items()}
            if name in known:
                assert read_bytes(own, name) == copy_file(own, name) == known[name]
        return len(known)

    assert all(run_concurrently(*(lambda u=user: use(u) for user in range(3))))
    assert direct.list_folders() == ["0", "1", "2"]
    assert set(proxy.injected) == {*BREAKING, Fault.SHORT}
    assert proxy.injected.total() > 10


# --- lasting faults

LASTING = {
    Fault.REFUSE: "reset",
    Fault.RESET: "reset",
    Fault.TRUNCATE: "(truncated|closed)",
    Fault.SLOW_DOWN: r"\(503\)",
}


def check_fails(action: Callable[[], object], location: str, why: str, *, attempts: int = 5) -> None:
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"{location}.* in {attempts} attempts: .*{why}.*; ") as caught:
        action()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 40


# over 10 s: every operation is tried again, after growing pauses, until it is given up
@pytest.mark.slow
def test_lasting_faults_fail_with_one_message_and_leave_nothing(
    object_store: Server, direct: Folder, monkeypatch
) -> None:
    write_bytes(direct, "there", CONTENT)
    with ExitStack() as stack:
        actions, proxies = list[Callable[[], None]](), dict[Fault, FaultProxy]()
        for fault, why in LASTING.items():
            proxies[fault] = stack.enter_context(FaultProxy(object_store.endpoint))
            actions += make_failing_checks(open_through(proxies[fault], direct, monkeypatch), fault, why)
            proxies[fault].plan(fault, path="/there", method="GET", after_bytes=1000)
            proxies[fault].plan(fault, path=f"{fault}%2F", after_bytes=1000)  # listing it
            proxies[fault].plan(fault, path=f"/{fault}/manifest", after_bytes=1000)
            proxies[fault].plan(fault, path=f"/{fault}/a")  # a write in one request
            proxies[fault].plan(fault, path="?uploads")  # the start of every other write
        run_concurrently(*actions)
        assert all(proxies[fault].injected[fault] >= 10 * 5 for fault in LASTING)
    assert [info.path for info in direct.list_files(recursive=True)] == [direct.file_path("there")]
    assert not any(direct.child(fault).exists() for fault in LASTING)


def make_failing_checks(folder: Folder, fault: Fault, why: str) -> list[Callable[[], None]]:
    """Return checks of every operation, each of which must fail."""
    own = folder.child(fault)
    return [
        lambda: check_fails(lambda: read_bytes(folder, "there"), f"{folder.uri}/there", why),
        lambda: check_fails(lambda: copy_file(folder, "there"), f"{folder.uri}/there", why),
        lambda: check_fails(lambda: own.exists(), f"{own.uri}/manifest.json", why),
        lambda: check_fails(lambda: own.list_files(), own.uri, why),
        lambda: check_fails(lambda: commit(own, {}, {"a": b"1"}), rf"{own.uri}/a \(1 bytes\)", why),
        lambda: check_fails(lambda: write_bytes(own, "large", LARGE), f"{own.uri}/large", why),
    ]


def test_a_server_that_is_down_or_silent_and_comes_back(object_store: Server, direct: Folder, monkeypatch) -> None:
    """Incomplete writes do not exist: a commit without its manifest, an upload with a failed part."""
    monkeypatch.setattr(s3_clients, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    fails_twice = partial(check_fails, attempts=2)
    write_bytes(direct, "a", b"1234")
    with FaultProxy(object_store.endpoint) as dead, FaultProxy(object_store.endpoint) as sick:
        gone, ill = (open_through(proxy, direct, monkeypatch) for proxy in (dead, sick))
        sick.plan(Fault.STALL, method="HEAD", seconds=40)
        sick.plan(Fault.RESET, path="manifest.json", method="PUT", after_bytes=20)
        sick.plan(Fault.RESET, path="/large?partNumber=2", after_bytes=100_000)
        with dead.down():
            run_concurrently(
                lambda: fails_twice(lambda: read_bytes(gone, "a"), "/a", "refused"),
                lambda: fails_twice(lambda: gone.list_folders(), gone.uri, "refused"),
                lambda: fails_twice(lambda: read_bytes(ill, "a"), "/a", "timed out"),
                lambda: fails_twice(lambda: commit(ill, {}, {"b": b"1"}), "manifest.json", "reset"),
                lambda: fails_twice(lambda: write_bytes(ill, "large", LARGE), "/large", "reset"),
            )
        assert sick.injected == {Fault.STALL: 4, Fault.RESET: 9}
        sick.clear()
        for folder in (gone, ill):
            assert read_bytes(folder, "a") == b"1234"
            assert [info.base_name for info in folder.list_files()] == ["a", "b"]
            assert not folder.exists()


def test_an_overloaded_server_is_named_when_the_bucket_is_checked(proxy: FaultProxy, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.plan(Fault.SLOW_DOWN)
    with pytest.raises(StoreError, match=r"bucket 'latents': .*\(503\) in 4 attempts; "):
        open_folder("s3://latents/x")
    assert proxy.injected == {Fault.SLOW_DOWN: 4}


def test_a_request_that_cannot_succeed_is_not_repeated(proxy: FaultProxy, folder: Folder, monkeypatch) -> None:
    before = proxy.requests
    with pytest.raises(StoreError, match=r"/none "):
        read_bytes(folder, "none")
    with pytest.raises(StoreError, match=r"/nowhere "):
        folder.child("nowhere").list_files()
    assert proxy.requests - before <= 4
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    before = proxy.requests
    for action in (
        lambda: read_bytes(folder, "a"),
        lambda: write_bytes(folder, "a", b""),
        lambda: folder.list_folders(),
    ):
        with pytest.raises(StoreError, match="credentials"):
            action()
    assert proxy.requests - before == 3 + 1  # a write is tried in one request first


def test_a_full_disk_under_a_copy_is_named(folder: Folder) -> None:
    write_bytes(folder, "a", CONTENT)
    with (
        pytest.raises(StoreError, match=r"s3://.*/a: .*disk.*; "),
        open("/dev/full", "wb", buffering=0) as sink,
    ):
        download(folder, "a", sink)
