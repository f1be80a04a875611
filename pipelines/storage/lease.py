"""A lease on a piece of work: one holder among all processes that share a folder, until it ends or stops renewing.

A lease is a folder of files NNNNNN.json, one per epoch. The file of the next epoch is created exclusively, so that one
taker wins; its holder renews it by writing it again, and a takeover is a further epoch. A lease that was not renewed
for `EXPIRY_S` has expired, by the modification times that the store itself sets; a holder on this machine whose process
is gone is known to be dead at once. A holder that finds a newer epoch has lost the lease (`Lease.check`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import psutil

from pipelines.console import console
from pipelines.storage.exclusive_create import create_exclusive
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from presto_core.errors import UserError

RENEW_S = 5.0
EXPIRY_S = 30.0  # without a renewal
POLL_S = 0.5
ANNOUNCE_S = 3.0  # of waiting before it is said
_EPOCH = re.compile(r"(\d{6})\.json")


class LeaseHeldError(UserError):
    """Another process holds the lease."""


class LeaseLostError(UserError):
    """Another process took the lease over, because this one did not renew it in time."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: name of its machine, for messages.
        machine: this boot of its machine and its process namespace, within which `pid` is meaningful.
        born: when its process was created, since process ids are used again.
        since: when it took the lease, ISO 8601 in UTC.
        renewals: number of times it was renewed.
        released: the work ended, well or not; the next process may take it.
        nonce: makes the files of concurrent takers differ.
    """

    host: str
    machine: str
    pid: int
    born: float
    since: str
    renewals: int = 0
    released: bool = False
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, where this process can see it."""
        return self.machine == _machine()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists; meaningful if it is local."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True)
class _Entry:
    """The newest epoch of a lease; without a holder if its file cannot be read."""

    epoch: int
    holder: Holder | None
    renewed_at: datetime | None


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

    def check(self) -> None:
        """Check with the store that the lease is still held, before anything that others must not see twice.

        Raises:
            LeaseLostError: it is not.
        """
        entry = _read_newest(self.folder)
        if self.lost or entry is None or entry.epoch != self.epoch:
            self.lost = True
            by = f" by {entry.holder}" if entry and entry.holder and entry.epoch != self.epoch else ""
            raise LeaseLostError(
                f"{self.what} was taken over{by}, because this process did not answer for {EXPIRY_S:.0f} s; let that "
                "one finish, or stop it and re-run this command"
            )

    def stop(self) -> None:
        """Renew it no more, before its folder is deleted with the work's own files."""
        self._stopped.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def release(self) -> None:
        """Let the next process have it at once."""
        self.stop()
        if not self.lost and self.folder.exists(_file_name(self.epoch)):
            self._write(replace(self.holder, released=True))

    def _keep(self) -> None:
        while not self._stopped.wait(RENEW_S):
            with suppress(StoreError, OSError):  # the store is away, for others too: renewed when it is back
                self._renew()
            if self.lost:
                self.on_lost()
                return

    def _renew(self) -> None:
        entry = _read_newest(self.folder)
        if entry is None or entry.epoch != self.epoch:
            self.lost = not self._stopped.is_set()
        elif not self._stopped.is_set():
            self.holder = replace(self.holder, renewals=self.holder.renewals + 1)
            self._write(self.holder)

    def _write(self, holder: Holder) -> None:
        write_bytes(self.folder, _file_name(self.epoch), _encode(holder))


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
    entry = _read_newest(folder)
    if entry is None or _is_free(entry):
        return ""
    if entry.holder and not entry.holder.is_local and _age_s(folder, entry) >= EXPIRY_S:
        return ""
    return str(entry.holder or "an unknown process")


def _acquire(folder: Folder, what: str, *, wait: bool) -> Lease:
    began, announced = time.monotonic(), False
    first: _Entry | None = None
    while True:
        entry = _read_newest(folder)
        if entry is None or _is_free(entry) or _has_expired(folder, entry):
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
                f"{what} is being worked on by {holder}; wait for it, or stop that process and re-run this command"
            )
        if not announced and (not wait or time.monotonic() - began >= ANNOUNCE_S):
            announced = True
            reason = "to end" if is_alive else f"to answer; without an answer it counts as dead after {EXPIRY_S:.0f} s"
            console.print(f"{what}: waiting for {holder or 'another process'} {reason}", markup=False)
        time.sleep(POLL_S * (0.5 + secrets.randbelow(100) / 100) if wait and is_alive else POLL_S)


def _is_free(entry: _Entry) -> bool:
    holder = entry.holder
    return holder is not None and (holder.released or (holder.is_local and not holder.is_alive))


def _has_expired(folder: Folder, entry: _Entry) -> bool:
    """Whether a holder elsewhere did not renew its lease; one on this machine is alive while its process is."""
    return not (entry.holder and entry.holder.is_local) and _age_s(folder, entry) >= EXPIRY_S


def _take(folder: Folder, what: str, before: _Entry | None) -> Lease | None:
    """Take the next epoch; None if another process did."""
    epoch = before.epoch + 1 if before else 1
    holder = make_holder()
    if not create_exclusive(folder, _file_name(epoch), _encode(holder)):
        return None
    newest = _read_newest(folder)
    if newest is None or newest.epoch != epoch:  # others took this epoch, ended and were followed while this one looked
        folder.delete_file(_file_name(epoch))
        return None
    if before:
        if before.holder and not before.holder.released:
            console.print(f"{what}: taken over from {before.holder}, which ended without a word", markup=False)
        with suppress(StoreError, OSError):
            folder.delete_file(_file_name(before.epoch))
    return Lease(folder, epoch, holder, what)


def make_holder() -> Holder:
    """Describe this process."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time(), now)


def _read_newest(folder: Folder) -> _Entry | None:
    found = {info.base_name: info for info in folder.list_files(missing_ok=True) if _EPOCH.fullmatch(info.base_name)}
    if not found:
        return None
    name = max(found)
    try:
        holder = Holder(**json.loads(read_bytes(folder, name)))
    except (StoreError, ValueError, TypeError):  # deleted meanwhile, or half written where writing is not atomic
        holder = None
    return _Entry(int(name.partition(".")[0]), holder, found[name].mtime)


def _age_s(folder: Folder, entry: _Entry) -> float:
    """Seconds since the last renewal by the store's own clock, which a small file written now shows."""
    name = f"clock-{secrets.token_hex(4)}"
    write_bytes(folder, name, b"now")
    now = folder.filesystem.get_file_info(folder.file_path(name)).mtime
    folder.delete_file(name)
    return (now - entry.renewed_at).total_seconds() if now and entry.renewed_at else 0.0


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _file_name(epoch: int) -> str:
    return f"{epoch:06d}.json"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Identify the boot of this machine and the process namespace: pids mean the same within."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)
