"""The two state machines find faults: one of them fails with any of these in leases, commits, gc or promotions.

A machine that nothing can fail proves nothing. Each fault leaves out or turns around one line of the product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from pipelines.registry import garbage, promotion_log, publish
from pipelines.registry.promotion import Promoter
from pipelines.storage import lease
from pipelines.storage.fence import Fence
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import write_bytes
from presto_core.config.sections import TrackingConfig
from presto_core.training import checkpoint
from presto_core.training.checkpoint_folders import CheckpointName, delete_old, list_checkpoints
from tests.pipelines import test_one_driver
from tests.pipelines.test_one_driver import OneDriver
from tests.pipelines.test_registry_machine import RegistryMachine
from tests.support.small_versions import SmallRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


def overwrite(folder: Folder, name: str, content: bytes) -> bool:
    write_bytes(folder, name, content)
    return True


def order_by_step(folder: Folder) -> list[CheckpointName]:
    return sorted(list_checkpoints(folder), key=lambda name: (name.step, name.epoch))


def delete_all_but_newest(folder: Folder, *, newest: CheckpointName, keep: int, every: int = 0) -> None:
    delete_old(folder, newest=CheckpointName(newest.epoch, newest.step - 1), keep=keep, every=every)
    folder.child(str(newest)).delete()


def read_age_by_own_clock(folder: Folder, entry: Any) -> float:
    return time.time() - entry.renewed_at.timestamp()


def renew_unchecked(self: lease.Lease) -> None:
    self._write(self.holder)


def keep_no_parents(self: garbage.Contents, ids: Iterable[str]) -> set[str]:
    return set(ids)


DRIVER_FAULTS: dict[str, Fault] = {
    "a lease without a check of its epoch": lambda patch: patch.setattr(Fence, "check", lambda self: None),
    "a folder whose writes ask nobody": lambda patch: patch.setattr(Fence, "guard", lambda self, folder: folder),
    "a fence that compares only whether there is a lease": lambda patch: patch.setattr(
        Fence, "check", lambda self: None if lease.read_newest(self.folder) else pytest.fail("no lease")
    ),
    "a lease that whoever asks may take": lambda patch: patch.setattr(
        lease, "_has_expired", lambda folder, entry: True
    ),
    "a lease that expires by the machine's clock": lambda patch: patch.setattr(lease, "age_s", read_age_by_own_clock),
    "checkpoints without an epoch": lambda patch: patch.setattr(
        CheckpointName, "__str__", lambda self: f"step-{self.step:09d}"
    ),
    "the furthest checkpoint in place of the newest": lambda patch: patch.setattr(
        checkpoint, "list_checkpoints", order_by_step
    ),
    "retention that deletes the checkpoint just written": lambda patch: patch.setattr(
        test_one_driver, "delete_old", delete_all_but_newest
    ),
    "a promotion that does not compare": lambda patch: patch.setattr(promotion_log, "create_exclusive", overwrite),
}
REGISTRY_FAULTS: dict[str, Fault] = {
    "gc that does not look again": lambda patch: patch.setattr(
        garbage.GarbageCollector, "_find_reference", lambda self, artifact_id: ""
    ),
    "gc that deletes ancestors": lambda patch: patch.setattr(garbage.Contents, "close_over_parents", keep_no_parents),
    "gc that does not know what runs start from": lambda patch: patch.setattr(
        garbage, "_read_run_parents", lambda scratch: frozenset()
    ),
    "one content that becomes two versions": lambda patch: patch.setattr(
        publish, "_find_by_content", lambda client, name, content: None
    ),
    "a promotion of which MLflow does not hear": lambda patch: patch.setattr(
        Promoter, "sync_aliases", lambda self, name, log: None
    ),
    "a rollback that names the champion again": lambda patch: patch.setattr(
        promotion_log.PromotionLog, "read", lambda self, number: self.read_head()
    ),
}


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Run always the same examples; no smaller one is looked for."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=[Phase.generate], derandomize=True, database=None,
            deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
        ),
    )  # fmt: skip


def check_found(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    with pytest.raises((Exception, pytest.fail.Exception)) as found:
        run_machine(machine, examples, steps)
    assert not isinstance(found.value, HypothesisException)
    print(f"{type(found.value).__name__}: {str(found.value).splitlines()[:1]}")


@pytest.fixture(scope="module")
def shelf(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    database = tmp_path_factory.mktemp("registry") / "mlflow.db"
    database.write_bytes(mlflow_database.read_bytes())
    RegistryMachine.shelf = SmallRegistry("", open_tracker(TrackingConfig(uri=f"sqlite:///{database}")))


def test_without_a_fault_drivers_pass():
    run_machine(OneDriver, 40, 15)


@pytest.mark.parametrize("fault", DRIVER_FAULTS)
def test_a_fault_of_drivers_is_found(fault: str, monkeypatch: pytest.MonkeyPatch):
    DRIVER_FAULTS[fault](monkeypatch)
    check_found(OneDriver, 40, 15)


def test_without_a_fault_the_registry_passes(shelf: None):
    run_machine(RegistryMachine, 10, 14)


@pytest.mark.parametrize("fault", REGISTRY_FAULTS)
def test_a_fault_of_the_registry_is_found(fault: str, shelf: None, monkeypatch: pytest.MonkeyPatch):
    REGISTRY_FAULTS[fault](monkeypatch)
    check_found(RegistryMachine, 10, 14)
