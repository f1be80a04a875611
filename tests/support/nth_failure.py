"""Fails the n-th operation on storage, and checks that what is committed below a root is whole."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import exclusive_create
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts import durable
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest_schema import parse_files
from presto_core.artifacts.store import StoreError, read_bytes, read_file, read_manifest

CALLS = ("replace", "link", "mkdir", "unlink")


@dataclass
class NthFailure:
    """Fails the n-th operation below a root, once; 0 counts only.

    A write fails half way; a call of the system, before it has an effect; reading, listing and deleting, before or,
    for an even n, after it.

    Attributes:
        counts: operations so far, by kind.
        failed: the kind of the operation that failed.
    """

    root: Path
    n: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def is_due(self, kind: str, path: str | Path) -> bool:
        if not Path(path).is_relative_to(self.root):
            return False
        with self.lock:
            self.counts[kind] += 1
            if self.counts.total() != self.n:
                return False
            self.failed = f"{kind} {path}"
            return True

    @contextmanager
    def inject(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            self._watch_writes(patch)
            for name in CALLS:
                self._watch_call(patch, name)
            self._watch_folders(patch)
            yield

    def _watch_writes(self, patch: pytest.MonkeyPatch) -> None:
        real = durable.write_synced

        def write(path: Path, content: bytes) -> None:
            if self.is_due("write", path):
                path.write_bytes(content[: len(content) // 2])
                raise OSError(5, "Input/output error", str(path))
            real(path, content)
            if self.is_due("fsync", path):
                raise OSError(5, "Input/output error", str(path))

        patch.setattr(durable, "write_synced", write)
        patch.setattr(exclusive_create, "write_synced", write)

    def _watch_call(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(path: Any, *args: Any, **how: Any) -> Any:
            if self.is_due(name, os.fspath(path)):
                raise OSError(5, "Input/output error", os.fspath(path))
            return real(path, *args, **how)

        patch.setattr(os, name, call)

    def _watch_folders(self, patch: pytest.MonkeyPatch) -> None:
        real = Folder.with_retries

        def with_retries(folder: Folder, action: Callable[[], Any], operation: str) -> Any:
            kind = operation.split()[0]
            is_due = kind in ("delete", "list", "read", "look") and self.is_due(kind, folder.path)
            if is_due and self.n % 2:
                raise StoreError(f"cannot {operation}: Input/output error")
            result = real(folder, action, operation)
            if is_due:
                raise StoreError(f"cannot {operation}: Input/output error")
            return result

        patch.setattr(Folder, "with_retries", with_retries)


def check_committed(root: str) -> int:
    """Verify all files of every artifact and checkpoint below a root that has a manifest; return how many these are."""
    found, store = 0, open_folder(root)
    for name in store.child("artifacts").list_folders():
        folder = store.child("artifacts").child(name)
        if folder.exists():
            manifest = read_manifest(folder)
            for file, entry in parse_files(manifest).items():
                assert len(read_bytes(folder, file)) == entry.bytes
            for file in manifest["files"]:
                read_file(folder, file, manifest)
            found += 1
    for run in store.child("runs").list_folders():
        checkpoints = store.child("runs").child(run).child("checkpoints")
        for name in checkpoints.list_folders():
            folder = checkpoints.child(name)
            if folder.exists():
                manifest = read_manifest(folder)
                for file in manifest["files"]:
                    read_file(folder, file, manifest)
                found += 1
    return found
