"""A lease on a piece of work: one holder among all processes that share a folder, until it ends or stops renewing.

A lease is a folder of files NNNNNN.json, one per epoch. The file of the next epoch is created exclusively, so that one
taker wins; its holder renews it by writing it again, and a takeover is a further epoch. A lease that was not renewed
for `EXPIRY_S` has expired, by the modification times that the store itself sets; a holder on this machine whose process
is gone is known to be dead at once. A holder that finds a newer epoch has lost the lease; its `Fence` guards what it
and its workers change.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from pipelines.console import console
from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.fence import Fence
from pipelines.storage.fence import LeaseLostError as LeaseLostError
from pipelines.storage.lease_file import HELD, Entry, age_s, encode, file_name
from pipelines.storage.lease_file import Holder as Holder
from pipelines.storage.lease_file import make_holder as make_holder
from pipelines.storage.lease_file import read_newest as read_newest
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, write_bytes
from presto_core.errors import UserError

RENEW_S = 5.0
EXPIRY_S = 30.0  # without a renewal
POLL_S = 0.5
ANNOUNCE_S = 3.0  # of waiting before it is said


class LeaseHeldError(UserError):
    """Another process holds the lease."""


@dataclass
class Lease:
    """A lease that this process holds.

    Attributes:
        epoch: number that only grows from holder to holder: a fencing token.
        what: the work, for messages.
    """

    folder: Folder
    epoch: int
    holder: Holder
    what: str
    on_lost: Callable[[], None] = lambda: None
    lost: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> Fence:
        """What workers in other processes need to write for this holder."""
        return Fence(self.folder, self.epoch, self.holder.nonce, self.what)

    def check(self) -> None:
        """Check with the store that the lease is still held, before a change that two holders must not make.

        Raises:
            LeaseLostError: it is not.
            StoreError: the store does not answer, so nobody knows.
        """
        try:
            self.fence.check()
        except LeaseLostError:
            self.lost = True
            raise

    def stop(self) -> None:
        """Renew it no more, before its folder is deleted with the work's own files."""
        self._stopped.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def release(self) -> None:
        """Let the next process have it at once; work in this process may take it even if the store is away."""
        self.stop()
        HELD.discard(self.holder.nonce)
        with suppress(LeaseLostError):  # also where its folder was deleted with the work
            self.fence.check()
            self._write(replace(self.holder, released=True))

    def _keep(self) -> None:
        while not self._stopped.wait(RENEW_S):
            with suppress(StoreError, OSError):  # the store is away, for others too: renewed when it is back
                self._renew()
            if self.lost:
                self.on_lost()
                return

    def _renew(self) -> None:
        try:
            self.fence.check()
        except LeaseLostError:
            self.lost = not self._stopped.is_set()
            return
        if not self._stopped.is_set():
            self.holder = replace(self.holder, renewals=self.holder.renewals + 1)
            self._write(self.holder)

    def _write(self, holder: Holder) -> None:
        write_bytes(self.folder, file_name(self.epoch), encode(holder))


@contextmanager
def hold_lease(
    folder: Folder, what: str, *, wait: bool = False, on_lost: Callable[[], None] = lambda: None
) -> Iterator[Lease]:
    """Hold a lease while the block runs.

    Args:
        folder: the lease's own folder.
        what: names the work in messages: `run 0123456789abcdef`.
        wait: wait for a living holder to end, instead of being refused.
        on_lost: called from a thread if another process takes the lease over.

    Raises:
        LeaseHeldError: another living process holds it, and `wait` is false.
        StoreError: the folder cannot be read or written.
    """
    lease = _acquire(folder, what, wait=wait)
    lease.on_lost = on_lost
    lease.start()
    try:
        yield lease
    finally:
        lease.stop()
        with suppress(StoreError, OSError):  # it expires by itself
            lease.release()


def describe_holder(folder: Folder) -> str:
    """Name the process that holds a lease, if it may be alive; empty if the lease is free, expired or was never taken.

    Raises:
        StoreError: the folder cannot be read or written.
    """
    entry = read_newest(folder)
    if entry is None or entry.is_free:
        return ""
    if entry.holder and not entry.holder.is_local and age_s(folder, entry) >= EXPIRY_S:
        return ""
    return str(entry.holder or "an unknown process")


def _acquire(folder: Folder, what: str, *, wait: bool) -> Lease:
    began, announced = time.monotonic(), False
    first: Entry | None = None
    while True:
        entry = read_newest(folder)
        if entry is None or entry.is_free or _has_expired(folder, entry):
            lease = _take(folder, what, entry)
            if lease:
                return lease
            continue
        holder = entry.holder
        first = first if first and first.epoch == entry.epoch else entry
        is_renewed = first.holder != holder or first.renewed_at != entry.renewed_at
        is_alive = holder is not None and (holder.is_local or is_renewed)
        if is_alive and not wait:
            raise LeaseHeldError(
                f"{what} is being worked on by {holder}; wait for it with --wait, or stop that process and re-run this "
                "command"
            )
        if not announced and (not wait or time.monotonic() - began >= ANNOUNCE_S):
            announced = True
            reason = "to end" if is_alive else f"to answer; without an answer it counts as dead after {EXPIRY_S:.0f} s"
            console.print(f"{what}: waiting for {holder or 'another process'} {reason}", markup=False)
        time.sleep(POLL_S * (0.5 + secrets.randbelow(100) / 100) if wait and is_alive else POLL_S)


def _has_expired(folder: Folder, entry: Entry) -> bool:
    """Whether a holder elsewhere did not renew its lease; one on this machine is alive while its process is."""
    return not (entry.holder and entry.holder.is_local) and age_s(folder, entry) >= EXPIRY_S


def _take(folder: Folder, what: str, before: Entry | None) -> Lease | None:
    """Take the next epoch; None if another process did."""
    epoch = before.epoch + 1 if before else 1
    holder = make_holder()
    HELD.add(holder.nonce)
    is_taken = False
    try:
        is_taken = _create(folder, epoch, holder)
    finally:
        if not is_taken:
            HELD.discard(holder.nonce)
    if not is_taken:
        return None
    if before:
        if before.holder and not before.holder.released:
            console.print(f"{what}: taken over from {before.holder}, which ended without a word", markup=False)
        with suppress(StoreError, OSError):
            folder.delete_file(file_name(before.epoch))
    return Lease(folder, epoch, holder, what)


def _create(folder: Folder, epoch: int, holder: Holder) -> bool:
    """Create the file of the next epoch; return whether this holder has it."""
    if not create_exclusive(folder, file_name(epoch), encode(holder)):
        return False
    newest = read_newest(folder)
    if newest is None or newest.epoch != epoch:  # others took this epoch, ended and were followed while this one looked
        folder.delete_file(file_name(epoch))
        return False
    return True
