"""Copies a report from its artifact to this machine, and finds the report that a user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.evaluate.page.fields import ReportError
from pipelines.evaluate.report import REPORT_FILE
from pipelines.registry.catalog import Catalog
from pipelines.registry.evaluation_tags import EMBEDDINGS
from pipelines.registry.names import parse_reference
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import HOME
from presto_core.artifacts.durable import make_folders, replace_file
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.manifest import Artifact, artifact_folder
from presto_core.artifacts.store import read_file

REPORTS = HOME / "reports"
SHOWN_TYPES = (".json", ".jsonl", ".wav", ".png")
"""Types of file that a page shows. HTML that an older report holds is never copied: anyone may have written it."""
REPORT_ID_TAG = "report"


def find_report(client: Any, reference: str, storage_root: str) -> Artifact:
    """Return the report of an id, a URI or a registry name; of a model's name, the report that measured it last.

    Raises:
        ReportError: there is no such artifact, or it is no report, and none measured it.
        RegistryError, StoreError: see `resolve`.
    """
    parsed = parse_reference(reference)
    if not parsed:
        _require_artifact(reference, storage_root)
    artifact = resolve(client, reference, storage_root)
    if artifact.kind == "report":
        return artifact
    by_name = parsed if not resolve_pretrained(reference) else None
    versions = [Catalog(client).get(by_name)] if by_name else Catalog(client).list_artifact_versions(artifact.id)
    measured = [str(v.measurements[REPORT_ID_TAG]) for v in versions if v.measurements.get(REPORT_ID_TAG)]
    if not measured:
        raise ReportError(
            f"{reference} is a {artifact.kind} that no report measured; run presto evaluate, or name a report"
        )
    return resolve(client, measured[-1], storage_root)


def _require_artifact(reference: str, storage_root: str) -> None:
    """Refuse an id or URI without an artifact: its manifest's name alone would not tell what to do."""
    folder = open_folder(reference) if "/" in reference else artifact_folder(open_folder(storage_root), reference)
    if not folder.exists():
        raise ReportError(
            f"there is no report {reference}: {folder.uri} holds no artifact; name one that "
            f"presto registry list presto-report shows, or its store with storage.root=…"
        )


def fetch_report(artifact: Artifact) -> Path:
    """Copy what a page shows to .presto/reports/ID, and return this folder; files that are there already are kept.

    Raises:
        ReportError: the artifact is no report.
        StoreError: a file is missing or damaged.
    """
    if artifact.kind != "report":
        raise ReportError(
            f"artifact {artifact.id} is a {artifact.kind}, not a report; name one that presto evaluate made"
        )
    source, target = open_folder(artifact.uri), REPORTS / artifact.id
    for name, entry in artifact.manifest["files"].items():
        path = target / name
        if Path(name).suffix not in SHOWN_TYPES or name == EMBEDDINGS:
            continue
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            _write_file(path, read_file(source, name, artifact.manifest))
    return target


def find_local_report(reference: str) -> Path | None:
    """Return the folder if the reference is one with a fetched report; an artifact's own folder is not written to."""
    folder = Path(reference).expanduser()
    is_report = (folder / REPORT_FILE).is_file() and not (folder / MANIFEST).exists()
    return folder if is_report else None


def read_local_report(folder: Path) -> dict[str, Any]:
    """The content of a folder's report.json, unchecked but for being an object.

    Raises:
        ReportError: it is missing or no JSON object.
    """
    path = folder / REPORT_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; fetch the report with presto report ID") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            f"{path} cannot be read ({error}); delete it and fetch the report with presto report ID"
        ) from None
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds no JSON object; delete it and fetch the report with presto report ID")
    return content


def _write_file(path: Path, content: bytes) -> None:
    """Write a file at once, so that an interrupted copy leaves none that looks complete."""
    make_folders(path.parent)
    replace_file(path, content)
