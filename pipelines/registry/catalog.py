"""Queries of the registry: versions by reference or by filter, with their aliases; MLflow does the searching."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pipelines.redaction import redact
from pipelines.registry import names
from pipelines.registry.names import Reference, RegistryError, parse_reference
from pipelines.registry.search_filter import NUMBERS, REGISTRY_NAMES, Clause
from presto_core.metrics.table import canonical_name

PAGE_SIZE = 100
MAX_RESULTS = 1000  # MLflow's limit per request


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        number: MLflow's version number, in order of registration.
        aliases: aliases that point to it.
        tags: facts recorded when it was registered, evaluated or promoted.
        mlflow_run: id of its MLflow run.
    """

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    mlflow_run: str
    created_ms: int

    @property
    def label(self) -> str:
        return f"{self.name}@v{self.number}"

    @property
    def content(self) -> str:
        return self.tags.get(names.CONTENT, "")

    @property
    def artifact_id(self) -> str:
        return self.tags.get(names.ARTIFACT_ID, "")

    @property
    def uri(self) -> str:
        return self.tags.get(names.ARTIFACT_URI, "")

    @property
    def kind(self) -> str:
        return self.tags.get(names.KIND, "")

    @property
    def method(self) -> str:
        return self.tags.get(names.METHOD, "")

    @property
    def parents(self) -> dict[str, str]:
        """Role -> artifact id."""
        prefix = names.PARENT
        return {key.removeprefix(prefix): value for key, value in self.tags.items() if key.startswith(prefix)}

    @property
    def licences(self) -> list[str]:
        return list(json.loads(self.tags.get(names.LICENCES, "[]")))

    @property
    def measurements(self) -> dict[str, Any]:
        """Results of an evaluation: numbers by name, and texts such as hardware and embedding."""
        tag_values = {k.removeprefix(names.MEASURED): v for k, v in self.tags.items() if k.startswith(names.MEASURED)}
        return {canonical_name(key): float(value) if key in NUMBERS else value for key, value in tag_values.items()}

    @property
    def gate(self) -> str:
        """Whether a teacher passed its gate: `passed`, `failed: ...` or `undecided: ...`; empty without a result."""
        return self.tags.get(names.GATE, "")

    @property
    def created_at(self) -> str:
        return datetime.fromtimestamp(self.created_ms / 1000, UTC).isoformat(timespec="seconds")

    def to_dict(self) -> dict[str, Any]:
        """Return the form for --json."""
        return {
            "name": self.name,
            "version": self.number,
            "content": self.content,
            "id": self.artifact_id,
            "uri": redact(self.uri),
            "kind": self.kind,
            "method": self.method,
            "stage": self.tags.get(names.STAGE, ""),
            "aliases": list(self.aliases),
            "parents": self.parents,
            "measured": self.measurements,
            "gate": self.gate,
            "licences": self.licences,
            "budget": json.loads(self.tags.get(names.BUDGET, "null")),
            "bytes": int(self.tags.get(names.SIZE, 0)),
            "mlflow_run": self.mlflow_run,
            "created": self.created_at,
        }


@dataclass
class Catalog:
    """Read access to the registry.

    Attributes:
        client: an mlflow.MlflowClient.
    """

    client: Any

    @cached_property
    def models(self) -> dict[str, Any]:
        """Registered models by name, with aliases and tags, as of the first access."""
        return {model.name: model for model in self.client.search_registered_models(max_results=MAX_RESULTS)}

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
        from mlflow.exceptions import MlflowException

        name, alias = reference.name, reference.alias
        try:
            if reference.number:
                return self._to_version(self.client.get_model_version(name, str(reference.number)))
            return self._to_version(self.client.get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        if not reference.number and re.fullmatch(r"[0-9a-f]{8,64}", alias):
            return self._find_one(f"name = '{name}' and tags.`{names.CONTENT}` LIKE '{alias}%'", str(reference))
        raise RegistryError(self._not_found_message(reference))

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
        return self._find_one(f"tags.`{names.ARTIFACT_ID}` = '{text}'", text)

    def _find_one(self, query: str, label: str) -> Version:
        versions = [self._to_version(v) for v in self.client.search_model_versions(query, max_results=PAGE_SIZE)]
        if len({v.content for v in versions}) > 1:
            matches = ", ".join(f"{v.name}@v{v.number}" for v in versions)
            raise RegistryError(f"{label} matches several versions: {matches}; name one of them")
        if not versions:
            raise RegistryError(f"the registry has no version {label}; list versions with: presto registry list")
        return versions[0]

    def search(self, clauses: list[Clause], *, limit: int = 50, order: str = "") -> list[Version]:
        """Return versions that match all clauses: newest first, or smallest first by the number `order`.

        The database filters: each version's run holds the searchable metrics, params and tags.
        """
        query = [f"tags.`{names.CONTENT}` LIKE '%'", *(clause.mlflow_filter for clause in clauses)]
        order_by = [f"metrics.`{names.METRIC}{REGISTRY_NAMES[order]}` ASC"] if order else ["attributes.start_time DESC"]
        runs = self.client.search_runs(
            self._list_experiment_ids(), " and ".join(query), max_results=min(limit, MAX_RESULTS), order_by=order_by
        )
        wanted = [clause.value for clause in clauses if clause.field == "name"]
        versions = self.find_by_runs([run.info.run_id for run in runs])
        return [v for v in versions if v.name in (wanted or [v.name])][:limit]

    def find_by_runs(self, runs: list[str]) -> list[Version]:
        """Return the versions of MLflow runs, in the order of the runs."""
        rank = {run: number for number, run in enumerate(runs)}
        versions: list[Version] = []
        for start in range(0, len(runs), PAGE_SIZE):
            run_list = ",".join(f"'{run}'" for run in runs[start : start + PAGE_SIZE])
            versions += self._search_all(f"run_id IN ({run_list})")
        return sorted(versions, key=lambda v: (rank[v.mlflow_run], v.name, -v.number))

    def find_by_artifacts(self, ids: list[str]) -> list[Version]:
        """Return one version per artifact: the last updated one, if it has several names."""
        newest_versions = [self.list_artifact_versions(artifact_id)[:1] for artifact_id in ids]
        return [version for versions in newest_versions for version in versions]

    def list_artifact_versions(self, artifact_id: str) -> list[Version]:
        """Return all versions of one artifact, under all names."""
        return self._search_all(f"tags.`{names.ARTIFACT_ID}` = '{artifact_id}'")

    def list_newest(self, name: str, *, limit: int, method: str = "") -> list[Version]:
        """Return versions of one model, newest first."""
        query = f"name = '{name}'" + (f" and tags.`{names.METHOD}` = '{method}'" if method else "")
        mlflow_versions = self.client.search_model_versions(query, max_results=limit, order_by=["version_number DESC"])
        return [self._to_version(v) for v in mlflow_versions]

    def list_all(self) -> list[Version]:
        """Return all versions, for maintenance; slow in a large registry."""
        return [version for name in sorted(self.models) for version in self._search_all(f"name = '{name}'")]

    def _search_all(self, query: str) -> list[Version]:
        versions, token = [], None
        while True:
            page = self.client.search_model_versions(query, max_results=10 * MAX_RESULTS, page_token=token)
            versions += [self._to_version(version) for version in page]
            token = page.token
            if not token:
                return versions

    def _list_experiment_ids(self) -> list[str]:
        return [experiment.experiment_id for experiment in self.client.search_experiments(max_results=MAX_RESULTS)]

    def _to_version(self, mlflow_version: Any) -> Version:
        model = self.models.get(mlflow_version.name)
        aliases = model.aliases if model else {}
        version_aliases = tuple(
            sorted(alias for alias, number in aliases.items() if int(number) == int(mlflow_version.version))
        )
        run = mlflow_version.run_id or ""
        return Version(
            mlflow_version.name,
            int(mlflow_version.version),
            version_aliases,
            dict(mlflow_version.tags),
            run,
            int(mlflow_version.creation_timestamp),
        )
