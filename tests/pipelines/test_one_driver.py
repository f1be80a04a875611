"""Drivers that take, lose and hold a run in any order, on machines whose clocks are wrong: exactly one of them writes.

A state machine over lease, checkpoints, retention, rows and promotions of one run. The model is what the holder of the
newest epoch did; whatever the others try is refused, or lands where nobody reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipelines.registry.promotion_log import PromotionLog, PromotionRecord
from pipelines.storage import lease as lease_module
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import Lease, LeaseHeldError, LeaseLostError
from pipelines.storage.lease_file import make_holder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.run_layout import CHECKPOINTS, LEASE
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.training.checkpoint import Snapshot, read_newest_checkpoint, write_checkpoint
from presto_core.training.checkpoint_folders import CheckpointName, delete_incomplete, delete_old, list_checkpoints

KEEP, HOUR_S = 2, 3600.0
DRIVERS = st.integers(0, 2)


@dataclass
class Driver:
    """A process on a machine of its own: the lease it believes to hold, its step, how wrong its clock is."""

    number: int
    skew_s: float
    lease: Lease | None = None
    step: int = 0
    has_saved: bool = False

    @contextmanager
    def imitate_machine(self, wait: Callable[[], None]) -> Iterator[None]:
        """Be a process of this driver's machine, with its clock; `wait` is called instead of sleeping, a few times."""
        me = replace(make_holder(), host=f"host{self.number}", machine=f"host{self.number}/boot", pid=self.number)
        wrong, waits = time.time() + self.skew_s, iter([wait] * 5)
        with (
            patch.object(lease_module, "make_holder", lambda: me),
            patch("time.time", lambda: wrong),
            patch("time.sleep", lambda seconds: next(waits)()),
        ):
            yield


class OneDriver(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.path = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.scratch = open_folder(str(self.path / "run"))
        self.log = PromotionLog(open_folder(str(self.path / "log")))
        self.drivers = [Driver(n, skew_s=(n - 1) * HOUR_S) for n in range(3)]
        self.holder: Driver | None = None
        self.resumed_from = 0
        self.promoted: list[int] = []

    def teardown(self) -> None:
        self.stack.close()

    def _folder(self, driver: Driver) -> Folder:
        assert driver.lease
        return driver.lease.fence.guard(self.scratch).child(CHECKPOINTS)

    @rule(number=DRIVERS)
    def acquire(self, number: int) -> None:
        """A driver starts; the holder before it was cut off for longer than its lease, by the store's clock."""
        driver, lease_folder = self.drivers[number], self.scratch.child(LEASE)
        for file in (self.path / "run" / LEASE).glob("*.json"):
            past = time.time() - 2 * lease_module.EXPIRY_S
            os.utime(file, (past, past))
        with driver.imitate_machine(lambda: pytest.fail("it waits for a lease that has expired")):
            driver.lease = lease_module._acquire(lease_folder, "run x", wait=False)
        self.holder, driver.has_saved = driver, False
        delete_incomplete(self._folder(driver), epoch=driver.lease.epoch)
        newest = read_newest_checkpoint(self._folder(driver))
        name = CheckpointName.parse(newest[0].uri.rpartition("/")[2]) if newest else None
        driver.step = self.resumed_from = name.step if name else 0

    @precondition(lambda self: self.holder)
    @rule(number=DRIVERS)
    def start_beside_the_holder(self, number: int) -> None:
        """A driver starts while the holder renews its lease: it is refused, whatever its own clock shows."""
        assert self.holder
        assert self.holder.lease
        with self.drivers[number].imitate_machine(self.holder.lease._renew), pytest.raises(LeaseHeldError):
            lease_module._acquire(self.scratch.child(LEASE), "run x", wait=False)

    @rule(number=DRIVERS, steps=st.integers(1, 3))
    def save(self, number: int, steps: int) -> None:
        """A driver saves and cleans up; one that was superseded changes nothing."""
        driver, before = self.drivers[number], list_checkpoints(self.scratch.child(CHECKPOINTS))
        if driver.lease is None:
            return
        driver.step += steps
        try:
            name = write_checkpoint(
                self._folder(driver), Snapshot(driver.step, {}, {"items": []}), epoch=driver.lease.epoch
            )
            delete_old(self._folder(driver), newest=name, keep=KEEP)
        except LeaseLostError:
            assert driver is not self.holder
            assert list_checkpoints(self.scratch.child(CHECKPOINTS)) == before
        else:
            assert driver is self.holder
            driver.has_saved = True
            self.resumed_from = driver.step

    @precondition(lambda self: self.holder and any(d.lease and d is not self.holder for d in self.drivers))
    @rule(steps=st.integers(1, 9))
    def wake_in_mid_upload(self, steps: int) -> None:
        """A zombie was frozen after its check: its request, and nothing after it, still reaches the store."""
        zombie = next(d for d in self.drivers if d.lease and d is not self.holder)
        assert zombie.lease
        assert self.holder
        if not self.holder.has_saved:
            return  # the holder resumed from what the zombie wrote, and would do so again: the same work, further on
        zombie.step += steps
        checkpoints = self.scratch.child(CHECKPOINTS)
        write_checkpoint(checkpoints, Snapshot(zombie.step, {}, {"items": []}), epoch=zombie.lease.epoch)

    @rule(number=DRIVERS, steps=st.integers(1, 9))
    def be_overtaken_in_mid_upload(self, number: int, steps: int) -> None:
        for driver in (number, (number + 1) % 3):
            self.acquire(driver)
            self.save(driver, 1)
        self.wake_in_mid_upload(steps)

    @rule(number=DRIVERS)
    def delete_scratch(self, number: int) -> None:
        driver = self.drivers[number]
        if driver.lease and driver is not self.holder:
            with pytest.raises(LeaseLostError):
                driver.lease.fence.guard(self.scratch).delete()

    @rule(number=DRIVERS)
    def write_rows(self, number: int) -> None:
        driver = self.drivers[number]
        if driver.lease is None:
            return
        guarded = driver.lease.fence.guard(self.scratch)
        try:
            write_bytes(guarded, "rows", json.dumps(driver.lease.epoch).encode())
        except LeaseLostError:
            assert driver is not self.holder
        assert not self.scratch.exists("rows") or json.loads(read_bytes(self.scratch, "rows")) <= self._holder_epoch()

    @rule(number=DRIVERS, stale=st.booleans())
    def promote(self, number: int, stale: bool) -> None:
        """Whoever read the log before another wrote to it is refused by the number it wants to take."""
        head = self.log.read_head()
        next_number = (head.number if head else 0) + (0 if stale and head else 1)
        record = PromotionRecord(next_number, "promote", number + 1, "", "", 0, f"driver {number}", "now", "")
        if self.log.add(record):
            self.promoted.append(number + 1)

    def _holder_epoch(self) -> int:
        return self.holder.lease.epoch if self.holder and self.holder.lease else 0

    @invariant()
    def the_holder_is_the_only_one(self) -> None:
        for driver in self.drivers:
            if driver.lease and driver is not self.holder:
                with pytest.raises(LeaseLostError):
                    driver.lease.fence.check()
        if self.holder and self.holder.lease:
            self.holder.lease.fence.check()

    @invariant()
    def a_resume_begins_where_the_holder_is(self) -> None:
        newest = read_newest_checkpoint(self.scratch.child(CHECKPOINTS))
        name = CheckpointName.parse(newest[0].uri.rpartition("/")[2]) if newest else None
        assert (name.step if name else 0) == self.resumed_from

    @invariant()
    def no_promotion_is_lost(self) -> None:
        assert [record.version for record in self.log.read_all()] == self.promoted


OneDriver.TestCase.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestOneDriver = OneDriver.TestCase
