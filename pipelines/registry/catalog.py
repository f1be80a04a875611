"""The register as it is read: versions by reference or by filter, with their aliases; all searching is MLflow's."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pipelines.redaction import redacted
from pipelines.registry import names
from pipelines.registry.names import (
    Reference,
    RegistryError,
    parse_reference,
)
from pipelines.registry.search_filter import NUMBERS, Clause

PAGE = 100
LIMIT = 1000  # that MLflow gives at once


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        number: MLflow's, in order of registration.
        aliases: that point to it.
        tags: what was said of it when it was registered, judged or promoted.
    """

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    mlflow_run: str
    created_ms: int

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
    def measured(self) -> dict[str, Any]:
        """What an evaluation found: numbers by name, and texts such as hardware and embedding."""
        said = {k.removeprefix(names.MEASURED): v for k, v in self.tags.items() if k.startswith(names.MEASURED)}
        return {key: float(value) if key in NUMBERS else value for key, value in said.items()}

    @property
    def created(self) -> str:
        return datetime.fromtimestamp(self.created_ms / 1000, UTC).isoformat(timespec="seconds")

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "version": self.number,
            "content": self.content,
            "id": self.artifact_id,
            "uri": redacted(self.uri),
            "kind": self.kind,
            "method": self.method,
            "stage": self.tags.get(names.STAGE, ""),
            "aliases": list(self.aliases),
            "parents": self.parents,
            "measured": self.measured,
            "licences": self.licences,
            "budget": json.loads(self.tags.get(names.BUDGET, "null")),
            "bytes": int(self.tags.get(names.SIZE, 0)),
            "mlflow_run": self.mlflow_run,
            "created": self.created,
        }


@dataclass
class Catalog:
    """Reading access.

    Attributes:
        client: mlflow.MlflowClient.
    """

    client: Any

    @cached_property
    def models(self) -> dict[str, Any]:
        """Registered models by name, with aliases and tags: as they were at the first look."""
        return {model.name: model for model in self.client.search_registered_models(max_results=LIMIT)}

    def find(self, text: str) -> Version:
        """The one version that a reference or an artifact's id means.

        Raises:
            RegistryError: there is none, or several begin with that hash.
        """
        reference = parse_reference(text)
        if reference is None:
            return self._by_artifact(text)
        return self.named(reference)

    def named(self, reference: Reference) -> Version:
        """The version of a reference by name; raises RegistryError as `find` does."""
        from mlflow.exceptions import MlflowException

        name, alias = reference.name, reference.alias
        try:
            if reference.number:
                return self._version(self.client.get_model_version(name, str(reference.number)))
            return self._version(self.client.get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        if not reference.number and re.fullmatch(r"[0-9a-f]{8,64}", alias):
            return self._one(f"name = '{name}' and tags.`{names.CONTENT}` LIKE '{alias}%'", str(reference))
        raise RegistryError(self._unknown(reference))

    def _unknown(self, reference: Reference) -> str:
        known = sorted(f"{model}@{alias}" for model, said in self.models.items() for alias in said.aliases)
        shown = ", ".join(known[:20]) or "nothing yet"
        mend = "Run the stage that makes it, or give an artifact's id or URI"
        return f"the registry has no {reference}; it has {shown}. {mend}"

    def _by_artifact(self, text: str) -> Version:
        if not re.fullmatch(r"[0-9a-f]{16}", text):
            raise RegistryError(
                f"{text!r} names no version; write presto-generator@champion, @v3, a hash or an artifact's id"
            )
        return self._one(f"tags.`{names.ARTIFACT_ID}` = '{text}'", text)

    def _one(self, query: str, said: str) -> Version:
        found = [self._version(v) for v in self.client.search_model_versions(query, max_results=PAGE)]
        if len({v.content for v in found}) > 1:
            known = ", ".join(f"{v.name}@v{v.number}" for v in found)
            raise RegistryError(f"{said} means several versions: {known}; name one")
        if not found:
            raise RegistryError(f"the registry has no version {said}; look with: presto registry list")
        return found[0]

    def search(self, clauses: list[Clause], *, limit: int = 50, order: str = "") -> list[Version]:
        """Versions that fit all clauses: the newest first, or the least by a number.

        The data base compares: each version's run holds what it is found by.
        """
        query = [f"tags.`{names.CONTENT}` LIKE '%'", *(clause.mlflow for clause in clauses)]
        order_by = [f"metrics.`{names.METRIC}{order}` ASC"] if order else ["attributes.start_time DESC"]
        runs = self.client.search_runs(
            self._experiments(), " and ".join(query), max_results=min(limit, LIMIT), order_by=order_by
        )
        wanted = [clause.value for clause in clauses if clause.field == "name"]
        found = self.of_runs([run.info.run_id for run in runs])
        return [v for v in found if v.name in (wanted or [v.name])][:limit]

    def of_runs(self, runs: list[str]) -> list[Version]:
        """Versions of MLflow runs, in the order of the runs."""
        place = {run: number for number, run in enumerate(runs)}
        found: list[Version] = []
        for start in range(0, len(runs), PAGE):
            listed = ",".join(f"'{run}'" for run in runs[start : start + PAGE])
            found += self._all(f"run_id IN ({listed})")
        return sorted(found, key=lambda v: (place[v.mlflow_run], v.name, -v.number))

    def of_artifacts(self, ids: list[str]) -> list[Version]:
        """One version of each artifact: that which was touched last, where it has several names."""
        found = [self.named_alike(artifact_id)[:1] for artifact_id in ids]
        return [version for versions in found for version in versions]

    def named_alike(self, artifact_id: str) -> list[Version]:
        """All versions of one artifact, under whatever names."""
        return self._all(f"tags.`{names.ARTIFACT_ID}` = '{artifact_id}'")

    def newest(self, name: str, *, limit: int, method: str = "") -> list[Version]:
        """Versions of one model, the newest first."""
        query = f"name = '{name}'" + (f" and tags.`{names.METHOD}` = '{method}'" if method else "")
        found = self.client.search_model_versions(query, max_results=limit, order_by=["version_number DESC"])
        return [self._version(v) for v in found]

    def everything(self) -> list[Version]:
        """All versions: for upkeep, not for a look."""
        return [version for name in sorted(self.models) for version in self._all(f"name = '{name}'")]

    def _all(self, query: str) -> list[Version]:
        found, token = [], None
        while True:
            page = self.client.search_model_versions(query, max_results=10 * LIMIT, page_token=token)
            found += [self._version(version) for version in page]
            token = page.token
            if not token:
                return found

    def _experiments(self) -> list[str]:
        return [experiment.experiment_id for experiment in self.client.search_experiments(max_results=LIMIT)]

    def _version(self, said: Any) -> Version:
        model = self.models.get(said.name)
        aliases = model.aliases if model else {}
        mine = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(said.version)))
        run = said.run_id or ""
        return Version(said.name, int(said.version), mine, dict(said.tags), run, int(said.creation_timestamp))
