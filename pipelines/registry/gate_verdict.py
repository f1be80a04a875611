"""The verdict of a teacher's gate: where it is recorded, and the warning of what is distilled without one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipelines.console import console
from pipelines.registry import names
from pipelines.registry.catalog import Catalog
from pipelines.registry.publish import retry_conflicts
from presto_core.artifacts.manifest import Artifact

COMMAND = "presto study teacher"


def record_verdict(client: Any, artifact_id: str, verdict: str) -> int:
    """Tag every registered version of a teacher with `passed`, `failed: ...` or `undecided: ...`; return how many."""
    versions = Catalog(client).list_artifact_versions(artifact_id)
    for version in versions:
        if version.gate != verdict:
            set_tag = partial(client.set_model_version_tag, version.name, str(version.number), names.GATE, verdict)
            retry_conflicts(set_tag)
    return len(versions)


def read_verdict(client: Any, teacher: Artifact) -> str:
    """Return the verdict that a shipped teacher carries in its manifest, or the registry has; empty without one."""
    if isinstance(stored := teacher.manifest.get("gate"), Mapping):
        return str(stored.get("verdict", ""))
    tags = [version.gate for version in Catalog(client).list_artifact_versions(teacher.id)]
    return next(filter(None, tags), "")


def warn_of_verdict(client: Any, teacher: Artifact) -> None:
    """Print a line if a teacher about to be distilled has not passed its gate."""
    if message := explain_verdict(read_verdict(client, teacher), teacher.id):
        console.print(message, style="yellow", markup=False)


def explain_verdict(verdict: str, teacher_id: str) -> str:
    """Return the warning for a verdict; empty for one that passed."""
    if verdict == "passed":
        return ""
    if not verdict:
        return f"teacher {teacher_id} has no gate result: {COMMAND} inputs.teacher={teacher_id}"
    return f"teacher {teacher_id} does not count as a base yet, its gate {verdict}; see {COMMAND}"
