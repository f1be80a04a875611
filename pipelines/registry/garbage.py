"""What nothing below a storage root refers to: `find_garbage` lists it, `GarbageCollector.delete` removes it safely.

A deletion holds the lease of the artifact's run, checks everything again, removes the manifest, and looks once more for
a version that was registered meanwhile, which looks for the manifest before it is made (publish.py). One of the two
always sees the other.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from pyarrow import fs as pafs

from pipelines.registry import names
from pipelines.registry.artifact_lease import has_work, hold_artifact
from pipelines.registry.catalog import Version
from pipelines.registry.root_identity import RegistryIdentity, check_ownership
from pipelines.registry.version_query import find_versions
from pipelines.storage.lease import Lease, LeaseHeldError, describe_holder
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import artifact_folder, read_artifact, run_folder
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.run_layout import LEASE, RUN_FILE
from presto_core.artifacts.store import DamagedError, read_bytes, write_bytes
from presto_core.errors import UserError

FORK_SEPARATOR = "/"
ARTIFACT, RUN = "artifact", "run"
EPOCH = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class GarbageItem:
    """A folder below storage.root that nothing refers to.

    Attributes:
        kind: artifact or run.
        why: what it is, and why nothing refers to it.
        parents: of an artifact; deleted after it.
    """

    kind: str
    id: str
    uri: str
    bytes: int
    why: str
    folder: Folder
    parents: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Contents:
    """What is below a storage root.

    Attributes:
        manifests: artifact -> its manifest; None for an unfinished one.
        runs: unfinished run -> the artifacts it starts from.
    """

    manifests: dict[str, dict[str, Any] | None]
    runs: dict[str, frozenset[str]]

    @staticmethod
    def read(root: Folder) -> Contents:
        runs = {name: _read_run_parents(run_folder(root, name)) for name in root.child("runs").list_folders()}
        artifacts = root.child("artifacts").list_folders()
        return Contents({name: _try_read_manifest(artifact_folder(root, name)) for name in artifacts}, runs)

    def parents(self, artifact_id: str) -> frozenset[str]:
        return frozenset((self.manifests.get(artifact_id) or {}).get("parents", {}).values())

    def close_over_parents(self, ids: Iterable[str]) -> set[str]:
        """Return artifacts and all their ancestors, registered or not."""
        closed, queue = set(ids), list(ids)
        while queue:
            parents = self.parents(queue.pop()) - closed
            closed |= parents
            queue += parents
        return closed


def find_garbage(
    root: Folder, versions: list[Version], *, older_than: timedelta, runs_older_than: timedelta
) -> list[GarbageItem]:
    """Return artifacts that no version, run, kept artifact or descendant of them refers to, and abandoned runs.

    Args:
        versions: all registered versions, of any storage root.
        older_than: minimum age of an artifact; a younger one may be about to be registered.
        runs_older_than: minimum age of the newest file of an unfinished run that no process works on.

    Raises:
        UserError: the registry has no version, and there are artifacts.
    """
    contents, now = Contents.read(root), datetime.now(UTC)
    whole = [name for name, manifest in contents.manifests.items() if manifest]
    if whole and not any(version.artifact_id for version in versions):
        raise names.RegistryError(
            f"the registry has no version at all, and {root.uri} has {len(whole)} artifacts, all of which would be "
            "garbage; correct tracking.uri, or register what is to be kept: presto registry push"
        )
    abandoned = [name for name in contents.runs if _is_abandoned(run_folder(root, name), now - runs_older_than)]
    active = {name: parents for name, parents in contents.runs.items() if name not in abandoned}
    kept = {version.artifact_id for version in versions} | active.keys() | set().union(*active.values())
    kept |= {parent for version in versions for parent in version.parents.values()}
    ages = {name: _newest_mtime(artifact_folder(root, name)) for name in contents.manifests}
    kept |= {name for name, newest in ages.items() if newest >= now - older_than}
    kept = contents.close_over_parents(kept)
    items = []
    for name in abandoned:
        folder = run_folder(root, name)
        why = f"an abandoned run, last changed {_newest_mtime(folder):%Y-%m-%d}"
        items.append(GarbageItem(RUN, name, folder.uri, _total_bytes(folder), why, folder))
    for name in _order_children_first(contents, contents.manifests.keys() - kept):
        manifest, folder = contents.manifests[name], artifact_folder(root, name)
        why = f"a {manifest['kind']} that is not registered" if manifest else "an unfinished artifact"
        items.append(GarbageItem(ARTIFACT, name, folder.uri, _total_bytes(folder), why, folder, contents.parents(name)))
    return items


@dataclass
class GarbageCollector:
    """Deletes garbage, each item after everything was checked again.

    Attributes:
        identity: of the registry that the root belongs to.
        parents_seen: parents of the artifacts and runs that were read, which never change.
    """

    identity: RegistryIdentity
    root: Folder
    older_than: timedelta
    runs_older_than: timedelta
    parents_seen: dict[str, frozenset[str]] = field(default_factory=dict)

    def delete(self, item: GarbageItem) -> str:
        """Delete an item; return why it was kept instead, empty if it is gone.

        Raises:
            ForeignRootError: another registry has taken the root over.
            StoreError: storage cannot be read or written.
        """
        check_ownership(self.root, self.identity, set)
        try:
            with hold_artifact(self.root, item.id, f"the deletion of {item.kind} {item.id}") as lease:
                return self._delete_run(item, lease) if item.kind == RUN else self._delete_artifact(item, lease)
        except LeaseHeldError as error:
            return str(error)

    @cached_property
    def now(self) -> datetime:
        """The time by the store's own clock or this machine's, whichever makes files look younger."""
        name = f"clock-{secrets.token_hex(4)}"
        write_bytes(self.root, name, b"now")
        there = self.root.filesystem.get_file_info(self.root.file_path(name)).mtime
        self.root.delete_file(name)
        return min(datetime.now(UTC), _to_utc(there) if there else datetime.now(UTC))

    def _delete_run(self, item: GarbageItem, lease: Lease) -> str:
        lease_path = f"{item.folder.child(LEASE).path}/"
        files = [i for i in item.folder.list_files(recursive=True) if not i.path.startswith(lease_path)]
        if any(i.mtime and _to_utc(i.mtime) > self.now - self.runs_older_than for i in files):
            return f"run {item.id} was resumed meanwhile"
        # without its settings it is no run to resume, and without its manifest a checkpoint is none
        for info in sorted(files, key=lambda i: (i.base_name not in (RUN_FILE, MANIFEST), i.path)):
            lease.check()
            item.folder.delete_file(info.path.removeprefix(f"{item.folder.path}/"))
        return ""

    def _delete_artifact(self, item: GarbageItem, lease: Lease) -> str:
        if reason := self._find_reference(item.id):
            return reason
        if _newest_mtime(item.folder) > self.now - self.older_than:
            return f"artifact {item.id} was written meanwhile"
        manifest = read_bytes(item.folder, MANIFEST) if item.folder.exists() else None
        lease.check()
        item.folder.delete_file(MANIFEST)
        if manifest is not None:
            reason = "it could not be checked again"
            try:
                reason = self._find_version(item.id) or self._find_publisher(manifest)
            finally:
                if reason:
                    write_bytes(item.folder, MANIFEST, manifest)
            if reason:
                return reason
        lease.check()
        item.folder.delete()
        return ""

    def _find_reference(self, artifact_id: str) -> str:
        """Say what refers to an artifact now; empty if nothing does."""
        if reason := self._find_version(artifact_id):
            return reason
        for name in self.root.child("runs").list_folders():
            scratch = run_folder(self.root, name)
            if name == artifact_id and has_work(scratch):  # more than the lease that this command holds
                return f"run {name} started meanwhile"
            if artifact_id in self._read_parents(scratch, RUN_FILE):
                return f"run {name} starts from it"
        for name in self.root.child("artifacts").list_folders():
            if artifact_id in self._read_parents(artifact_folder(self.root, name), MANIFEST):
                return f"artifact {name} is made from it"
        return ""

    def _read_parents(self, folder: Folder, file: str) -> frozenset[str]:
        if folder.uri not in self.parents_seen:
            if not folder.exists(file):
                return frozenset()
            manifest = _try_read_manifest(folder) if file == MANIFEST else None
            parents = frozenset(manifest["parents"].values()) if manifest else _read_run_parents(folder)
            self.parents_seen[folder.uri] = parents
        return self.parents_seen[folder.uri]

    def _find_version(self, artifact_id: str) -> str:
        by_id = find_versions(self.identity.client, tags={names.ARTIFACT_ID: artifact_id}, page_size=1)
        by_parent = find_versions(self.identity.client, contained={names.PARENTS: [artifact_id]}, page_size=1)
        found = next(by_id, None) or next(by_parent, None)
        return f"{found.name}@v{found.version} was registered meanwhile" if found else ""

    def _find_publisher(self, manifest: bytes) -> str:
        """Whether a process is registering this content; it holds a lease until its version exists."""
        content = content_hash(json.loads(manifest))
        registry = self.root.child("registry")
        for model in registry.list_folders():
            lease = registry.child(model).child("versions").child(content)
            if lease.list_files(missing_ok=True) and (holder := describe_holder(lease)):
                return f"it is being registered as {model} by {holder}"
        return ""


def _order_children_first(contents: Contents, ids: Iterable[str]) -> list[str]:
    """Order artifacts so that each comes before those that it is made from."""
    rest, ordered = sorted(ids), list[str]()
    while rest:
        parents = set().union(*(contents.parents(name) for name in rest))
        leaves = [name for name in rest if name not in parents] or rest  # a circle has none
        ordered += leaves
        rest = [name for name in rest if name not in set(leaves)]
    return ordered


def _is_abandoned(scratch: Folder, cutoff: datetime) -> bool:
    return _newest_mtime(scratch) < cutoff and not describe_holder(scratch.child(LEASE))


def _read_run_parents(scratch: Folder) -> frozenset[str]:
    if not scratch.exists(RUN_FILE):
        return frozenset()
    try:
        parents = json.loads(read_bytes(scratch, RUN_FILE))["parents"]
        return frozenset(str(parent).split(FORK_SEPARATOR)[0] for parent in parents.values())
    except DamagedError:  # it ended meanwhile
        return frozenset()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{scratch.uri}/{RUN_FILE} is damaged, so what the run starts from is unknown; restore the file, or delete "
            "the run's folder"
        ) from None


def _try_read_manifest(folder: Folder) -> dict[str, Any] | None:
    if not folder.exists():
        return None
    try:
        return _with_parents(read_artifact(folder).manifest)
    except DamagedError:  # kept if something refers to it, so that verify reports it
        return {"kind": "damaged artifact", "parents": {}}
    except UserError:  # of a later release, or hostile
        return {"kind": "artifact that this release cannot read", "parents": {}}


def _with_parents(manifest: dict[str, Any]) -> dict[str, Any]:
    parents = manifest.get("parents")
    kind = str(manifest.get("kind") or "artifact")
    return {"kind": kind, "parents": parents if isinstance(parents, dict) else {}}


def _newest_mtime(folder: Folder) -> datetime:
    """When a folder last changed; of an empty one, when it was made, where the store knows that."""
    infos = folder.list_files(recursive=True, missing_ok=True)
    own = folder.filesystem.get_file_info(folder.path)
    infos += [own] if not infos and own.type == pafs.FileType.Directory else []
    return max((_to_utc(info.mtime) for info in infos if info.mtime), default=EPOCH)


def _to_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _total_bytes(folder: Folder) -> int:
    return sum(info.size or 0 for info in folder.list_files(recursive=True, missing_ok=True))
