"""A registered version: what its tags in MLflow record, read so that a tag that somebody else wrote breaks nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.redaction import redact
from pipelines.registry import names
from pipelines.registry.search_filter import NUMBERS
from presto_core.metrics.table import canonical_name


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
    def is_presto(self) -> bool:
        """Whether presto registered it: other tools may share the MLflow server, and even a model's name."""
        return bool(
            re.fullmatch(r"[0-9a-f]{64}", self.content) and re.fullmatch(r"[0-9a-f]{16}", self.artifact_id) and self.uri
        )

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
        licences = self._parse_tag(names.LICENCES)
        return [str(licence) for licence in licences] if isinstance(licences, list) else []

    @property
    def measurements(self) -> dict[str, Any]:
        """Results of an evaluation: numbers by name, and texts such as hardware and embedding."""
        tag_values = {k.removeprefix(names.MEASURED): v for k, v in self.tags.items() if k.startswith(names.MEASURED)}
        values = {key: _parse_number(value) if key in NUMBERS else value for key, value in tag_values.items()}
        return {canonical_name(key): value for key, value in values.items() if value is not None}

    @property
    def gate(self) -> str:
        """Whether a teacher passed its gate: `passed`, `failed: ...` or `undecided: ...`; empty without a result."""
        return self.tags.get(names.GATE, "")

    @property
    def size(self) -> int:
        """Bytes of its files."""
        size = self._parse_tag(names.SIZE)
        return size if isinstance(size, int) else 0

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
            "budget": self._parse_tag(names.BUDGET),
            "bytes": self.size,
            "mlflow_run": self.mlflow_run,
            "created": self.created_at,
        }

    def _parse_tag(self, key: str) -> Any:
        """The JSON of a tag; None without one, or if somebody wrote something else there."""
        try:
            return json.loads(self.tags.get(key, "null"))
        except ValueError:
            return None


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
