"""Pull and push of versions: whatever differs from its manifest is not stored, written or executed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pipelines.registry import transfer
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import read_artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.validate import UnsafeArtifactError
from presto_core.errors import UserError
from tests.support.tiny_registry import TinyRegistry, edit, files_below, presto

pytestmark = pytest.mark.usefixtures("in_registry_folder")


def test_pull_then_push_elsewhere_keeps_the_version(home: TinyRegistry, tmp_path: Path):
    presto(home, "pull", "candidate-ls", str(tmp_path / "mine"))
    assert files_below(tmp_path / "mine") == files_below(Path(home.made["LS"].uri))
    assert json.loads(presto(home, "pull", "candidate-ls", str(tmp_path / "mine"), "--json"))["pulled"] is False
    elsewhere = TinyRegistry(str(tmp_path / "other"), home.tracker, {})
    presto(elsewhere, "push", str(tmp_path / "mine"), "--name", "pushed", "--dry-run")
    assert "pushed" not in home.catalog.models
    for _ in range(2):
        presto(elsewhere, "push", str(tmp_path / "mine"), "--name", "pushed")
    (version,) = home.catalog.list_newest("pushed", limit=5)
    assert version.content == home.catalog.find("candidate-ls").content
    assert Path(version.uri).is_relative_to(tmp_path / "other")
    assert version.parents == home.catalog.find("candidate-ls").parents
    home.register(home.made["LS"], "pushed", "distill-steps")  # the same content, where it was made
    (version,) = home.catalog.list_newest("pushed", limit=5)
    assert version.uri == home.made["LS"].uri


def test_pull_resumes_where_it_was_cut(home: TinyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artifact = home.made["data"]
    from pipelines.storage import ranged_download

    monkeypatch.setattr(ranged_download, "PART_BYTES", 1000)
    monkeypatch.setattr(transfer, "THREADS", 1)
    fetched_parts: list[ranged_download.ByteRange] = []

    def fetch_until_interrupt(source: Folder, part: ranged_download.ByteRange, path: Path) -> None:
        if len(fetched_parts) == 5:
            raise KeyboardInterrupt
        fetched_parts.append(part)
        fetch(source, part, path)

    fetch = ranged_download.fetch
    monkeypatch.setattr(transfer, "fetch", fetch_until_interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    again: list[ranged_download.ByteRange] = []

    def fetch_again(source: Folder, part: ranged_download.ByteRange, path: Path) -> None:
        again.append(part)
        fetch(source, part, path)

    monkeypatch.setattr(transfer, "fetch", fetch_again)
    assert transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine")
    assert not set(fetched_parts) & set(again)
    assert files_below(tmp_path / "mine") == files_below(Path(artifact.uri))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


HOSTILE_FOLDERS = {
    "planted pickle": (lambda f: (f / "state.pkl").write_bytes(b"\x80\x04."), r"state\.pkl"),
    "planted module": (lambda f: (f / "x.py").write_text("x"), r"x\.py"),
    "hidden file": (lambda f: (f / ".env").write_text("x"), r"\.env"),
    "link": (lambda f: (f / "link.json").symlink_to("/etc/passwd"), r"/link\.json "),
    "link in place of weights": (
        lambda f: ((f / "weights.safetensors").unlink(), (f / "weights.safetensors").symlink_to("/etc/passwd")),
        r"/weights\.safetensors ",
    ),
    "linked folder": (lambda f: (f / "audio").symlink_to("/tmp"), "/audio "),
    "pipe": (lambda f: os.mkfifo(f / "pipe.json"), r"/pipe\.json "),
    "missing file": (lambda f: (f / "weights.safetensors").unlink(), r"weights\.safetensors"),
    "changed byte": (
        lambda f: (f / "config.yaml").write_bytes((f / "config.yaml").read_bytes()[:-1] + b"#"),
        r"config\.yaml .*sha256",
    ),
    "longer file": (lambda f: (f / "config.yaml").open("a").write("#") and None, r"config\.yaml .* bytes"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json"),
    "manifest of noise": (lambda f: (f / "manifest.json").write_bytes(b"\x80\x04"), r"manifest\.json"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json"),
    "file outside": (lambda f: edit(f, files={"../x.json": {"sha256": "a" * 64, "bytes": 1}}), "'../x.json'"),
    "id outside": (lambda f: edit(f, id="../../x"), "'../../x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_FOLDERS)
def test_a_hostile_folder_is_not_pushed(home: TinyRegistry, copy: Path, tmp_path: Path, case: str):
    spoil, message = HOSTILE_FOLDERS[case]
    spoil(copy)
    with pytest.raises(UserError, match=message):
        transfer.push(copy, open_folder(str(tmp_path / "target")))
    assert not (tmp_path / "target").exists()


def test_a_folder_with_a_right_hash_and_a_wrong_file_type_is_not_pushed(copy: Path, tmp_path: Path):
    import hashlib

    content = b"\x80\x04\x95 a pickle that the manifest lists"
    (copy / "weights.safetensors").write_bytes(content)
    file_entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit(copy, files=files | {"weights.safetensors": file_entry})
    with pytest.raises(UnsafeArtifactError, match=r"weights\.safetensors .*pickle"):
        transfer.push(copy, open_folder(str(tmp_path / "target")))


def spoil_storage(copy: Path, case: str) -> str:
    """Spoil the stored artifact, as anyone with write access could; returns what the message must name."""
    if case == "other bytes":
        path = copy / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        return r"weights\.safetensors .*sha256"
    if case == "shorter file":
        path = copy / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        return r"weights\.safetensors"
    if case == "missing file":
        (copy / "config.yaml").unlink()
        return r"config\.yaml"
    if case == "file outside":
        edit(copy, files={"../../escaped.json": {"sha256": "a" * 64, "bytes": 1}})
        return "/escaped.json'"
    if case == "absolute file":
        edit(copy, files={"/tmp/escaped.json": {"sha256": "a" * 64, "bytes": 1}})
        return "'/tmp/escaped.json'"
    if case == "planted pickle":
        (copy / "x.pkl").write_bytes(b"\x80\x04.")
        edit(copy, files={"x.pkl": {"sha256": "a" * 64, "bytes": 3}})
        return "'x.pkl'"
    edit(copy, parents={})
    return content_hash(json.loads((copy / "manifest.json").read_text()))[:12]


@pytest.mark.parametrize(
    "case",
    [
        "other bytes",
        "shorter file",
        "missing file",
        "file outside",
        "absolute file",
        "planted pickle",
        "other manifest",
    ],
)
def test_a_pull_from_hostile_storage_writes_nothing_outside_and_keeps_nothing(
    home: TinyRegistry, copy: Path, case: str
):
    content = home.catalog.find("candidate-s").content
    message = spoil_storage(copy, case)
    download_root = copy.parent / "downloads"
    download_root.mkdir()
    before = {p for p in copy.parent.rglob("*") if not p.is_relative_to(download_root)}
    with pytest.raises(UserError, match=message):
        transfer.pull(
            read_artifact(open_folder(str(copy))), open_folder(str(copy)), download_root / "mine", content=content
        )
    assert not (download_root / "mine").exists()
    assert {p for p in copy.parent.rglob("*") if not p.is_relative_to(download_root)} == before
    assert not Path("/tmp/escaped.json").exists()


@pytest.mark.parametrize("how", ["link", "link inside", "file"])
def test_a_pull_follows_no_existing_link(home: TinyRegistry, tmp_path: Path, how: str):
    artifact, content = home.made["S"], home.catalog.find("candidate-s").content
    partial = tmp_path / f".mine.{content[:12]}.partial"
    outside = tmp_path / "outside"
    outside.mkdir()
    if how == "link":
        partial.symlink_to(outside)
    elif how == "link inside":
        partial.mkdir()
        (partial / "weights.safetensors").symlink_to(outside / "weights")
    else:
        partial.write_text("x")
    with pytest.raises(UnsafeArtifactError, match=re.escape(str(partial))):
        transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine", content=content)
    assert not list(outside.iterdir())
