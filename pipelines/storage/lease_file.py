"""What a lease stores: who holds it since when, in one file per epoch, dated by the store."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import psutil

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes

HELD = set[str]()  # nonces of the leases that this process holds, or is about to take
_EPOCH = re.compile(r"(\d{6})\.json")


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
        """Whether its process exists and has not given the lease up; meaningful if it is local.

        This process may have failed to release a lease while the store was away, and must not wait for itself.
        """
        if self.pid == os.getpid():
            return self.nonce in HELD
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Entry:
    """The newest epoch of a lease; without a holder if its file cannot be read."""

    epoch: int
    holder: Holder | None
    renewed_at: datetime | None

    @property
    def is_free(self) -> bool:
        """Whether its holder is known to have ended."""
        holder = self.holder
        return holder is not None and (holder.released or (holder.is_local and not holder.is_alive))


def make_holder() -> Holder:
    """Describe this process."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time(), now)


def read_newest(folder: Folder) -> Entry | None:
    """Read the file of the newest epoch; None if the lease was never taken, or deleted.

    Raises:
        StoreError: the folder cannot be listed, or the file cannot be read although it is there.
    """
    found = {info.base_name: info for info in folder.list_files(missing_ok=True) if _EPOCH.fullmatch(info.base_name)}
    if not found:
        return None
    name = max(found)
    try:
        holder = Holder(**json.loads(read_bytes(folder, name)))
    except (ValueError, TypeError):  # half written where writing is not atomic
        holder = None
    except StoreError:
        if folder.exists(name):
            raise
        holder = None  # deleted meanwhile by the taker of the next epoch
    return Entry(int(name.partition(".")[0]), holder, found[name].mtime)


def age_s(folder: Folder, entry: Entry) -> float:
    """Seconds since the last renewal by the store's own clock, which a small file written now shows."""
    name = f"clock-{secrets.token_hex(4)}"
    write_bytes(folder, name, b"now")
    now = folder.filesystem.get_file_info(folder.file_path(name)).mtime
    folder.delete_file(name)
    return (now - entry.renewed_at).total_seconds() if now and entry.renewed_at else 0.0


def encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def file_name(epoch: int) -> str:
    return f"{epoch:06d}.json"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Identify the boot of this machine and the process namespace: pids mean the same within."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)
