"""Copies artifacts between storage and a local folder: resumable, with every hash and file type checked, atomic."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.console import progress_bar
from pipelines.registry.local_artifact import (
    check_artifact_folder,
    is_whole,
    iter_regular_files,
    read_local_manifest,
)
from pipelines.storage.ranged_download import ByteRange, RangeLedger, fetch, split_into_ranges
from presto_core.artifacts.durable import (
    make_folders,
    move_synced,
    replace_file,
    sync_file,
    sync_folder,
    sync_folders_between,
)
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import FileEntry, check_artifact, content_hash
from presto_core.artifacts.store import StoreError, explain, read_manifest, write_bytes
from presto_core.artifacts.validate import UnsafeArtifactError, check_content

THREADS = 8
BLOCK = 8 * 2**20


def pull(artifact: Artifact, source: Folder, target: Path, *, content: str = "") -> bool:
    """Copy an artifact into a new folder; return False if the folder already holds the same artifact, whole.

    An interrupted copy resumes where it stopped. The folder appears only after every byte is checked. In a damaged
    copy, what is missing or differs is fetched again.

    Args:
        content: content hash in the registry; empty if unknown.

    Raises:
        UnsafeArtifactError: it differs from the registry's hash, or holds what an artifact must not.
        StoreError: it cannot be read, or the local disk cannot be written.
    """
    files = check_artifact(artifact.manifest)
    digest = content_hash(artifact.manifest)
    if content and digest != content:
        raise UnsafeArtifactError(
            f"{artifact.uri} has content {digest[:12]}, but the registry has {content[:12]}; restore the artifact"
        )
    partial = target.parent / f".{target.name}.{digest[:12]}.partial"
    body = json.dumps(artifact.manifest, indent=2, sort_keys=True).encode()
    if target.exists() or target.is_symlink():
        return _fix_copy(source, files, target, partial, content=digest, manifest=body)
    _check_free_space(target.parent, sum(entry.bytes for entry in files.values()))
    with _lock_partial(partial):
        _fetch_files(source, files, partial, target.name)
        _write_durably(partial / MANIFEST, body)
        (partial / RangeLedger.NAME).unlink(missing_ok=True)
        _sync_files(partial, files)
        move_synced(partial, target)
    return True


def _fix_copy(
    source: Folder, files: dict[str, FileEntry], target: Path, partial: Path, *, content: str, manifest: bytes
) -> bool:
    """Fetch what is missing or damaged in a copy of this artifact; return whether anything was.

    Raises:
        UnsafeArtifactError: the folder is not such a copy.
    """
    if not _is_copy(target, content, files):
        raise UnsafeArtifactError(f"{target} exists and holds something else; name a folder that does not exist")
    damaged = {name: entry for name, entry in files.items() if not is_whole(target / name, entry)}
    if not damaged and _is_same(target, content):
        return False
    if target.is_symlink():
        raise UnsafeArtifactError(
            f"{target} is a link to a damaged copy; pull to the folder itself, or remove the link"
        )
    _check_free_space(target.parent, sum(entry.bytes for entry in damaged.values()))
    with _lock_partial(partial):
        _fetch_files(source, damaged, partial, target.name)
        _sync_files(partial, damaged)
        for name in damaged:
            make_folders((target / name).parent)
            move_synced(partial / name, target / name)
        replace_file(target / MANIFEST, manifest, partial=partial / MANIFEST)
        shutil.rmtree(partial)
    return True


def _is_copy(target: Path, content: str, files: dict[str, FileEntry]) -> bool:
    """Whether a folder is a copy of an artifact; if its manifest is lost or damaged, whether it has no other file."""
    if target.is_symlink() or not target.is_dir():
        return _is_same(target, content)
    names = set(iter_regular_files(target))
    try:
        return content_hash(read_local_manifest(target)) == content
    except (StoreError, UnsafeArtifactError):
        return bool(names - {MANIFEST}) and names <= {*files, MANIFEST}


def _sync_files(folder: Path, names: Iterable[str]) -> None:
    """Wait until files and the folders that they are in are on the disk."""
    paths = [folder / name for name in names]
    for path in paths:
        sync_file(path)
    sync_folders_between(paths, folder)


def _fetch_files(source: Folder, files: dict[str, FileEntry], partial: Path, label: str) -> None:
    """Fetch every missing part of every file; check each file as soon as it is complete."""
    ledger = RangeLedger.load(partial)
    for name, entry in files.items():
        _open_file(partial, name, entry)
    wanted = [part for name, entry in files.items() for part in split_into_ranges(name, entry.bytes)]
    pending = [part for part in wanted if part not in ledger]
    missing, lock = Counter(part.name for part in pending), threading.Lock()
    total = sum(entry.bytes for entry in files.values())
    done = total - sum(part.size for part in pending)
    bars = progress_bar(f"pull {label}", total, done=done)
    with bars as bar, ThreadPoolExecutor(THREADS) as pool, _cancel_on_failure(pool):

        def fetch_one(byte_range: ByteRange) -> None:
            fetch(source, byte_range, partial / byte_range.name)
            ledger.add(byte_range)
            with lock:
                missing[byte_range.name] -= 1
                whole = not missing[byte_range.name]
                bar.update(bar.done + byte_range.size, byte_range.name)
            if whole:
                _check_file(partial, byte_range.name, files[byte_range.name], ledger)

        complete = [name for name in files if name not in missing]
        checks = [pool.submit(_check_file, partial, name, files[name], ledger) for name in complete]
        for future in as_completed([*checks, *(pool.submit(fetch_one, part) for part in pending)]):
            future.result()


@contextmanager
def _cancel_on_failure(pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _check_file(partial: Path, name: str, entry: FileEntry, ledger: RangeLedger) -> None:
    """Check the hash and type of a complete file; if it is wrong, delete it with its parts in the ledger."""
    path = partial / name
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry.sha256:
                raise UnsafeArtifactError(
                    f"{name} arrived with sha256 {digest[:12]}..., but its manifest lists {entry.sha256[:12]}..., so "
                    "it was deleted; run the same command again, or check storage with presto registry verify"
                )
            check_content(name, stream, entry.bytes)
    except UnsafeArtifactError:
        ledger.discard(name)
        path.unlink()
        raise


def _open_file(partial: Path, name: str, entry: FileEntry) -> None:
    """Create a file of the right size, without following links."""
    path = partial / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.ftruncate(descriptor, entry.bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {explain(error)}") from error


@contextmanager
def _lock_partial(partial: Path) -> Iterator[None]:
    """Create and lock the folder of a partial copy; it must hold no links."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        partial.mkdir(mode=0o700)
    if partial.is_symlink() or not partial.is_dir():
        raise UnsafeArtifactError(f"{partial} is in the way and is not a folder; remove it")
    list(iter_regular_files(partial))
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreError(f"another pull is writing {partial}; wait until it ends") from None
    finally:
        os.close(descriptor)


def _is_same(target: Path, content: str) -> bool:
    try:
        return content_hash(read_local_manifest(target)) == content
    except (StoreError, UnsafeArtifactError):
        return False


def push(folder: Path, target: Folder) -> Artifact:
    """Copy an artifact's folder into storage, the manifest last; an equal artifact there is reused.

    Raises:
        UnsafeArtifactError: see `check_artifact_folder`; or storage holds another artifact with this id.
        StoreError: storage cannot be written.
    """
    manifest, files = check_artifact_folder(folder)
    artifact = Artifact(str(manifest["id"]), str(manifest["kind"]), target.uri, manifest)
    if target.exists():
        if content_hash(read_manifest(target)) != content_hash(manifest):
            raise UnsafeArtifactError(f"{target.uri} holds another artifact with this id; push to another storage.root")
        return artifact
    total = sum(entry.bytes for entry in files.values())
    with progress_bar(f"push {artifact.id}", total) as bar:
        for name, entry in files.items():
            _upload(folder / name, target, name, entry)
            bar.update(bar.done + entry.bytes, name)
    write_bytes(target, MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())
    return artifact


def _upload(path: Path, target: Folder, name: str, entry: FileEntry) -> None:
    """Upload one file; fail if its bytes changed since they were checked, before the artifact exists."""
    target_path = target.file_path(name)

    def put() -> None:
        filesystem, digest = target.filesystem, hashlib.sha256()
        if not target.is_remote:
            make_folders(Path(target_path).parent)
        with path.open("rb") as stream, filesystem.open_output_stream(target_path) as sink:
            while block := stream.read(BLOCK):
                digest.update(block)
                sink.write(block)
        if digest.hexdigest() != entry.sha256:
            raise UnsafeArtifactError(f"{path} changed during the push; push again")
        if not target.is_remote:
            sync_file(Path(target_path))
            sync_folder(Path(target_path).parent)

    target.with_retries(put, f"write {target.uri}/{name}")


def _check_free_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder} has {free / 1e9:.1f} GB free and the artifact needs {needed / 1e9:.1f} GB; free some space"
        )


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file without following links, and wait until its bytes are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
