"""Each operation on storage of a whole run fails once: what is committed is whole, and the same command completes it.

CI fails a few of them, always the same; `make test-faults` every one, on a local disk and on S3.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipelines.storage import lease
from pipelines.storage.local_s3 import Server
from presto_core.artifacts import fast_path, retry
from presto_core.errors import UserError
from presto_core.training import outage
from tests.servers.fault_proxy import Fault, FaultPlan, FaultProxy, Message
from tests.support.fault_runs import Parents, Training
from tests.support.nth_failure import NthFailure, check_committed
from tests.support.synthetic_dataset import make_dataset

KINDS = {"write", "fsync", "replace", "link", "mkdir", "unlink", "delete", "list", "read", "look"}
PARTS_FROM_BYTES = 8192  # weights and states are uploaded in parts here, as those of real sizes are
SAMPLE = 2  # operations that fail in CI
STEP = int(os.environ.get("PRESTO_FAULT_STEP", "1"))
Outcome = tuple[Any, Any]


@pytest.fixture
def make_training(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Training]:
    """Make a run of four steps with two checkpoints, in a folder of its own, as where matplotlib is not installed."""
    monkeypatch.setattr(lease, "RENEW_S", 3600.0)  # a thread's operations would be counted at another place each time
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots are on no store, and more than half of the time
    dataset = make_dataset(str(tmp_path / "data"), shard_rows=(8,)).uri

    def make(name: str, root: str = "") -> Training:
        folder = tmp_path / name
        (folder / ".presto").mkdir(parents=True)
        shutil.copy(mlflow_database, folder / ".presto/mlflow.db")
        settings: dict[str, Any] = {"loop.checkpoint_every": 2}
        if root:  # an outage that lasts until the command has ended
            settings |= {"storage.root": root, "loop.max_unsaved_minutes": 0}
        return Training("teacher", folder, Parents(dataset), steps=4, settings=settings)

    return make


def finish(training: Training) -> Outcome:
    """Run the same command again."""
    training.finish_in_process()
    check_committed(training.root)
    return training.outcome()


def fail(training: Training) -> bool:
    """Run the command with a failure; return whether it ended with an error, which must be one message."""
    try:
        training.finish_in_process()
    except (UserError, OSError):
        return True
    return False


def count_operations(training: Training) -> tuple[int, Outcome]:
    counted = NthFailure(Path(training.root))
    with counted.inject():
        assert not fail(training)
    assert counted.counts.keys() >= KINDS - {"unlink", "mkdir"}, counted.counts
    return counted.counts.total(), training.outcome()


def check_nth(training: Training, n: int, expected: Outcome) -> str:
    failure = NthFailure(Path(training.root), n)
    with failure.inject():
        fail(training)
    check_committed(training.root)
    assert finish(training) == expected, failure.failed
    shutil.rmtree(training.cwd)
    return failure.failed


def check_every(total: int, check: Callable[[int], str], *, step: int = 1) -> list[str]:
    """Check the failure of every operation, and only then complain of all that was not survived."""
    failed, errors = list[str](), dict[int, str]()
    for n in range(1, total + 1, step):
        try:
            failed.append(check(n))
        except Exception:
            errors[n] = traceback.format_exc()
            print(f"n={n}: {errors[n]}", flush=True)
    assert not errors, f"{len(errors)} of {total}: {sorted(errors)}"
    return failed


def test_a_few_failures(make_training: Callable[..., Training]):
    total, expected = count_operations(make_training("calm"))
    for n in Random(7).sample(range(1, total + 1), SAMPLE):
        assert check_nth(make_training(f"n{n}"), n, expected)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_failure_on_a_local_disk(make_training: Callable[..., Training]):
    total, expected = count_operations(make_training("calm"))
    failed = check_every(total, lambda n: check_nth(make_training(f"n{n}"), n, expected), step=STEP)
    kinds = {operation.split()[0] for operation in failed if operation}  # the first run looks for more than the others
    assert STEP > 1 or kinds >= KINDS - {"unlink", "mkdir"}


class OutageAtNth(FaultProxy):
    """From the n-th request on, none is answered, until `is_over`; counts requests, and parts of uploads among them."""

    n, count, parts, is_over = 0, 0, 0, False

    def _draw(self, request: Message) -> FaultPlan | None:
        with self._lock:
            self.count += 1
            self.parts += b"partNumber=" in request.head.partition(b"\r\n")[0]
            self.requests += 1
            is_out = bool(self.n) and self.count >= self.n and not self.is_over
            return FaultPlan(Fault.REFUSE) if is_out else None


@pytest.fixture
def proxy(object_store: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutageAtNth]:
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    monkeypatch.setattr(fast_path, "LIMIT_BYTES", PARTS_FROM_BYTES)
    with OutageAtNth(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.services
def test_an_outage_at_every_request_to_s3(make_training: Callable[..., Training], proxy: OutageAtNth, tmp_path: Path):
    """Every write, upload of a part, deletion and list is the first that fails, once."""
    base = f"s3://latents/{tmp_path.name}"
    calm = make_training("calm", f"{base}/calm")
    calm.finish_in_process()
    total, expected = proxy.count, calm.outcome()
    assert total > 50
    assert proxy.parts > 2

    def check(n: int) -> str:
        training = make_training(f"n{n}", f"{base}/{n}")
        proxy.n, proxy.count, proxy.is_over = n, 0, False
        has_failed = fail(training)
        proxy.is_over = True
        check_committed(training.root)
        assert finish(training) == expected
        shutil.rmtree(training.cwd)
        return "outage" if has_failed else ""

    failed = check_every(total, check, step=STEP)
    assert len([operation for operation in failed if operation]) > len(failed) / 2
