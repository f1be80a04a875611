"""Which registry a storage root belongs to: one name in the root and in MLflow, so that a wrong MLflow deletes nothing.

Below the root, `identity/<id>.json` exists for every registry that keeps versions there; a root that is safe to clean
has one, of this registry. In MLflow, a tag of an experiment has the id in its key, so that writers never overwrite each
other: a registry may have several ids, and knows a root by any of them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipelines.redaction import redact
from pipelines.registry.names import RUN_ID, RegistryError
from pipelines.registry.relocation import iter_pages
from pipelines.registry.version import Version
from pipelines.storage.exclusive_create import create_exclusive
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import artifact_folder
from presto_core.artifacts.store import StoreError, read_bytes

IDENTITY = "identity"  # folder below a storage root
TAG = "presto.registry."  # tag of an experiment: this and the registry's id


class ForeignRootError(RegistryError):
    """The storage root belongs to another registry, or nothing shows that it belongs to this one."""


@dataclass(frozen=True)
class RegistryIdentity:
    """The ids of one MLflow as a registry, and where a further one would be recorded."""

    client: Any
    experiment_id: str
    ids: frozenset[str]

    @staticmethod
    def read(client: Any, experiment_id: str) -> RegistryIdentity:
        """Read the ids from the tags of all experiments, deleted ones too."""
        from mlflow.entities import ViewType

        experiments = iter_pages(partial(client.search_experiments, view_type=ViewType.ALL))
        keys = (key for experiment in experiments for key in experiment.tags)
        return RegistryIdentity(
            client, experiment_id, frozenset(key.removeprefix(TAG) for key in keys if key.startswith(TAG))
        )

    def claim(self, root: Folder) -> RegistryIdentity:
        """Record that this registry has versions below a root; safe with concurrent writers."""
        own = min(self.ids, default="") or secrets.token_hex(8)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        if not self.ids:
            self.client.set_experiment_tag(self.experiment_id, f"{TAG}{own}", since)
        tracking = redact(str(getattr(self.client, "tracking_uri", "")))
        content = {"registry": own, "tracking_uri": tracking, "since": since, "nonce": secrets.token_hex(8)}
        create_exclusive(root.child(IDENTITY), f"{own}.json", json.dumps(content, indent=1).encode())
        return RegistryIdentity(self.client, self.experiment_id, self.ids | {own})

    def describe(self) -> str:
        return " or ".join(sorted(self.ids)) or "has no id yet"


def list_claims(root: Folder) -> set[str]:
    """Return the ids of the registries that keep versions below a root; empty for one of a former release."""
    infos = root.child(IDENTITY).list_files(missing_ok=True)
    return {info.base_name.removesuffix(".json") for info in infos if info.base_name.endswith(".json")}


def claim_on_publish(client: Any, root: Folder, artifact_id: str, mlflow_run: str) -> None:
    """Record the registry of a version that is about to be made, unless the root is an old one with other artifacts.

    Whose those are cannot be seen here: `check_ownership` decides.
    """
    claims = list_claims(root)
    if not claims and set(root.child("artifacts").list_folders()) - {artifact_id}:
        return
    identity = RegistryIdentity.read(client, client.get_run(mlflow_run).info.experiment_id)
    if not claims & identity.ids:
        identity.claim(root)


def check_ownership(root: Folder, identity: RegistryIdentity, known_ids: Callable[[], set[str]]) -> bool:
    """Check that a root belongs to this registry alone; return whether that is recorded, and not only concluded.

    A root without an identity belongs to the registry that knows most of its artifacts.

    Args:
        known_ids: returns the artifacts that the registry's versions and runs name; called for such a root only.

    Raises:
        ForeignRootError: it belongs to another registry, or nothing shows whose it is.
    """
    claims = list_claims(root)
    if others := claims - identity.ids:
        shown = ", ".join(_describe_claim(root, other) for other in sorted(others))
        also = " also" if claims & identity.ids else ""
        raise ForeignRootError(
            f"{root.uri}{also} belongs to registry {shown}, and this registry ({_uri(identity)}) is "
            f"{identity.describe()}; set tracking.uri to that registry, or, if it is gone for good, run: "
            "presto registry gc --adopt"
        )
    if claims:
        return True
    artifacts = root.child("artifacts")
    whole = {name for name in artifacts.list_folders() if artifact_folder(root, name).exists()}
    known = whole & known_ids() if whole else set()
    if 2 * len(known) < len(whole):
        raise ForeignRootError(
            f"{root.uri} does not record which registry it belongs to, and this one ({_uri(identity)}) knows "
            f"{len(known)} of its {len(whole)} artifacts; correct tracking.uri or storage.root, or, if the root is "
            "this registry's, run: presto registry gc --adopt"
        )
    return False


def adopt(root: Folder, identity: RegistryIdentity) -> RegistryIdentity:
    """Record that a root belongs to this registry alone."""
    claimed = identity.claim(root)
    for other in list_claims(root) - claimed.ids:
        root.child(IDENTITY).delete_file(f"{other}.json")
    return claimed


def find_known_artifacts(client: Any, versions: Iterable[Version]) -> set[str]:
    """Return the artifacts that versions, or runs of any experiment, name as theirs, registered or not."""
    from mlflow.entities import ViewType

    experiments = [e.experiment_id for e in iter_pages(partial(client.search_experiments, view_type=ViewType.ALL))]
    runs = iter_pages(partial(client.search_runs, experiments, run_view_type=ViewType.ALL))
    known = {run.data.tags[RUN_ID] for run in runs if RUN_ID in run.data.tags}
    return known | {version.artifact_id for version in versions}


def _describe_claim(root: Folder, registry_id: str) -> str:
    try:
        claim = json.loads(read_bytes(root.child(IDENTITY), f"{registry_id}.json"))
        return f"{registry_id} ({claim['tracking_uri']}, since {claim['since']})"
    except (StoreError, ValueError, TypeError, KeyError):  # damaged, or deleted meanwhile
        return registry_id


def _uri(identity: RegistryIdentity) -> str:
    return redact(str(getattr(identity.client, "tracking_uri", "")))
