"""Holds an artifact for a command that is not its run: by the run's lease, of which nothing is left afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.storage.lease import Lease, hold_lease
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import run_folder
from presto_core.artifacts.run_layout import LEASE


@contextmanager
def hold_artifact(root: Folder, artifact_id: str, what: str) -> Iterator[Lease]:
    """Hold an artifact while the block runs: no stage writes it, no gc deletes it.

    Raises:
        LeaseHeldError: another process does one of these.
    """
    scratch = run_folder(root, artifact_id)
    with hold_lease(scratch.child(LEASE), what) as lease:
        yield lease
        lease.check()
        lease.stop()
        if not has_work(scratch):
            scratch.delete()


def has_work(scratch: Folder) -> bool:
    """Whether a run's folder has more than its lease."""
    lease = f"{scratch.child(LEASE).path}/"
    return any(not info.path.startswith(lease) for info in scratch.list_files(recursive=True, missing_ok=True))
