"""The page in a report of an early release stays behind: the report is verified, pulled and pushed as data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.registry import names, transfer
from pipelines.registry.catalog import Version
from pipelines.registry.local_artifact import check_artifact_folder
from pipelines.registry.maintenance import verify_version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.store import commit
from presto_core.artifacts.validate import UnsafeArtifactError

PAGE = b"<!doctype html><script>document.body.append(1)</script>"


def commit_report(folder: Path, page: str = "index.html", kind: str = "report") -> Artifact:
    manifest = {"kind": kind, "id": "a" * 16, "parents": {"teacher": "b" * 16}, "report": {}}
    commit(open_folder(str(folder)), manifest, {"config.yaml": b"seed: 1\n", "report.json": b"{}", page: PAGE})
    return read_artifact(open_folder(str(folder)))


def test_a_report_with_a_page_is_verified_and_pulled_without_it(tmp_path: Path):
    artifact = commit_report(tmp_path / "old")
    content = content_hash(artifact.manifest)
    assert verify_version(Version("r", 1, (), {names.CONTENT: content, names.ARTIFACT_URI: artifact.uri}, "", 0)) == []
    (tmp_path / "old" / "index.html").unlink()
    assert transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine", content=content)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["config.yaml", "manifest.json", "report.json"]
    pushed = transfer.push(tmp_path / "mine", open_folder(str(tmp_path / "store")))
    assert content_hash(pushed.manifest) == content


def test_a_copy_pulled_by_an_early_release_is_pushed_without_its_page(tmp_path: Path):
    commit_report(tmp_path / "old")
    transfer.push(tmp_path / "old", open_folder(str(tmp_path / "store")))
    assert not (tmp_path / "store" / "index.html").exists()


@pytest.mark.parametrize(
    ("page", "kind"),
    [("index.html", "teacher"), ("other.html", "report"), ("audio/index.html", "report"), ("plot.svg", "report")],
)
def test_no_other_page_is_accepted(tmp_path: Path, page: str, kind: str):
    artifact = commit_report(tmp_path / "old", page, kind)
    with pytest.raises(UnsafeArtifactError, match=page):
        check_artifact_folder(tmp_path / "old")
    with pytest.raises(UnsafeArtifactError, match=page):
        transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_page_that_no_manifest_lists_is_refused(tmp_path: Path):
    commit_report(tmp_path / "old", "more.json")
    (tmp_path / "old" / "index.html").write_bytes(PAGE)
    with pytest.raises(UnsafeArtifactError, match=r"index\.html"):
        check_artifact_folder(tmp_path / "old")


def test_a_page_listed_with_nonsense_changes_nothing(tmp_path: Path):
    commit_report(tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["index.html"] = {"sha256": "../..", "bytes": -1}
    path.write_text(json.dumps(manifest))
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    assert set(check_artifact_folder(tmp_path / "copy")[1]) == {"config.yaml", "report.json"}
