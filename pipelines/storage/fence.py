"""The right of a lease's holder to change things, as every process that works for it checks it with the store."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.storage.lease_file import read_newest
from presto_core.artifacts.folder import Folder
from presto_core.errors import UserError


class LeaseLostError(UserError):
    """Another process took the lease over, because this one did not renew it in time, or ended the work."""


@dataclass(frozen=True)
class Fence:
    """One holder's epoch of a lease; it is sent to workers in other processes, whose writes it guards too.

    Attributes:
        folder: the lease's own folder.
        epoch: number that only grows from holder to holder.
        nonce: of the holder; epochs start again after the folder was deleted.
        what: the work, for messages.
    """

    folder: Folder
    epoch: int
    nonce: str
    what: str

    def check(self) -> None:
        """Check with the store that this epoch is the newest, before a change that two holders must not make.

        Raises:
            LeaseLostError: it is not.
            StoreError: the store does not answer, so nobody knows.
        """
        entry = read_newest(self.folder)
        if entry is None:
            raise LeaseLostError(f"{self.what} was finished by another process or deleted; re-run this command")
        # a file that cannot be read is this holder's own, or of a taker whose file is not whole yet
        if entry.epoch == self.epoch and (entry.holder is None or entry.holder.nonce == self.nonce):
            return
        by = f" by {entry.holder}" if entry.holder else ""
        raise LeaseLostError(
            f"{self.what} was taken over{by}, because this process did not answer in time; let that one finish, or "
            "stop it and re-run this command"
        )

    def guard(self, folder: Folder) -> Folder:
        """The same folder, whose writes and deletions check this fence first."""
        return folder.guard(self.check)
