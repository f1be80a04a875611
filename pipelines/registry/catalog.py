"""The registry's versions by reference, name or artifact; those of other tools in the same MLflow are skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from pipelines.registry import names
from pipelines.registry.names import Reference, RegistryError, parse_reference
from pipelines.registry.version import Version as Version
from pipelines.registry.version_query import find_by_hash, find_versions, list_models
from pipelines.tracking.sqlite_registry import StoredRegistry

MAX_PAGE = 200
BY_NAME = ("name ASC", "version_number DESC")
LAST_UPDATED_FIRST = ("last_updated_timestamp DESC", "name ASC", "version_number DESC")


@dataclass
class Catalog:
    """Read access to the registry.

    Attributes:
        client: an mlflow.MlflowClient, or all that its database holds.
        skipped: model and number of the versions that were skipped because other tools registered them.
    """

    client: Any
    skipped: set[tuple[str, int]] = field(default_factory=set)

    @cached_property
    def all_models(self) -> dict[str, Any]:
        """All registered models of MLflow by name, with aliases and tags, as of the first access."""
        return {model.name: model for model in list_models(self.client)}

    @cached_property
    def models(self) -> dict[str, Any]:
        """Those that presto registered, or registered a version of."""
        return {name: model for name, model in self.all_models.items() if _is_presto_model(model)}

    def describe_skipped(self) -> str:
        """Return how many models and versions of other tools were skipped; empty if there is none."""
        models = len(self.all_models) - len(self.models)
        versions = len([1 for name, _ in self.skipped if name in self.models])
        counts = [f"{count} {what}" for count, what in ((models, "models"), (versions, "versions")) if count]
        return f"skipped {' and '.join(counts)} of this MLflow that presto did not register" if counts else ""

    def find(self, text: str) -> Version:
        """Return the version that a reference or an artifact's id names.

        Raises:
            RegistryError: there is no such version, or several start with that hash.
        """
        reference = parse_reference(text)
        if reference is None:
            return self._find_by_artifact(text)
        return self.get(reference)

    def get(self, reference: Reference) -> Version:
        """Return the version of a parsed reference; raises RegistryError as `find` does."""
        version = self._try_get(reference)
        if version is None and not reference.number and re.fullmatch(r"[0-9a-f]{8,64}", reference.alias):
            found = find_by_hash(self.client, reference.name, names.CONTENT, reference.alias)
            return self._select_one(map(self._to_version, found), str(reference))
        if version is None:
            raise RegistryError(self._not_found_message(reference))
        if not version.is_presto:
            raise RegistryError(
                f"presto did not register {version.label}: it has no artifact; "
                "name a version that presto registry list shows"
            )
        return version

    def _try_get(self, reference: Reference) -> Version | None:
        name, number = reference.name, reference.number
        if isinstance(self.client, StoredRegistry):
            stored = self.client.find(name, number=number, alias=reference.alias)
            return None if stored is None else self._to_version(stored)
        from mlflow.exceptions import MlflowException

        try:
            if number:
                return self._to_version(self.client.get_model_version(name, str(number)))
            return self._to_version(self.client.get_model_version_by_alias(name, reference.alias))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def _not_found_message(self, reference: Reference) -> str:
        references = sorted(
            f"{model}@{alias}" for model, registered_model in self.models.items() for alias in registered_model.aliases
        )
        listing = ", ".join(references[:20]) or "nothing yet"
        hint = "run the stage that makes it, or name an artifact's id or URI"
        return f"the registry has no {reference}, it has {listing}; {hint}"

    def _find_by_artifact(self, text: str) -> Version:
        if not re.fullmatch(r"[0-9a-f]{16}", text):
            raise RegistryError(
                f"{text!r} names no version; use presto-generator@champion, @v3, a hash or an artifact's id"
            )
        return self._select_one(self.iter_versions(tags={names.ARTIFACT_ID: text}), text)

    def _select_one(self, found: Iterator[Version], label: str) -> Version:
        versions = list(islice(filter(lambda version: version.is_presto, found), MAX_PAGE))
        if len({v.content for v in versions}) > 1:
            matches = ", ".join(f"{v.name}@v{v.number}" for v in versions)
            raise RegistryError(f"{label} matches several versions: {matches}; name one of them")
        if not versions:
            raise RegistryError(f"the registry has no version {label}; list versions with: presto registry list")
        return versions[0]

    def iter_versions(self, **conditions: Any) -> Iterator[Version]:
        """Yield the versions that presto registered and that satisfy the conditions of `find_versions`."""
        for version in map(self._to_version, find_versions(self.client, **conditions)):
            if version.is_presto:
                yield version
            else:
                self.skipped.add((version.name, version.number))

    def find_by_artifacts(self, ids: list[str]) -> list[Version]:
        """Return one version per artifact: the newest one, if it has several names."""
        newest_versions = [self.list_artifact_versions(artifact_id)[:1] for artifact_id in ids]
        return [version for versions in newest_versions for version in versions]

    def list_artifact_versions(self, artifact_id: str) -> list[Version]:
        """Return all versions of one artifact, under all names."""
        return list(self.iter_versions(tags={names.ARTIFACT_ID: artifact_id}, order_by=LAST_UPDATED_FIRST))

    def list_newest(self, name: str, *, limit: int, method: str = "") -> list[Version]:
        """Return versions of one model, newest first."""
        tags = {names.METHOD: method} if method else {}
        page_size = min(limit + 1, MAX_PAGE)
        found = self.iter_versions(name=name, tags=tags, order_by=["version_number DESC"], page_size=page_size)
        return list(islice(found, limit))

    def list_all(self) -> list[Version]:
        """Return all versions, for maintenance; slow in a large registry."""
        return list(self.iter_versions(order_by=BY_NAME, page_size=MAX_PAGE))

    def list_referenced(self) -> list[Version]:
        """Return all versions that name an artifact, damaged and foreign ones too: what must not be deleted."""
        found = [self._to_version(version) for version in find_versions(self.client, order_by=BY_NAME)]
        self.skipped |= {(version.name, version.number) for version in found if not version.is_presto}
        return [version for version in found if version.artifact_id or version.parents]

    def _to_version(self, mlflow_version: Any) -> Version:
        model = self.all_models.get(mlflow_version.name)
        aliases = model.aliases if model else {}
        version_aliases = tuple(
            sorted(alias for alias, number in aliases.items() if int(number) == int(mlflow_version.version))
        )
        return Version(
            mlflow_version.name,
            int(mlflow_version.version),
            version_aliases,
            dict(mlflow_version.tags),
            mlflow_version.run_id or "",
            int(mlflow_version.creation_timestamp or 0),
        )


def _is_presto_model(model: Any) -> bool:
    newest: Sequence[Any] = model.latest_versions or ()
    return names.PROMOTION_LOG_TAG in model.tags or any(names.CONTENT in version.tags for version in newest)
