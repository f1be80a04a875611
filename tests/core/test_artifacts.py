"""Committed files are read back bit for bit or rejected by name; partial commits do not exist, nothing is executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs as pafs

from pipelines.registry.local_artifact import read_local_manifest
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import (
    CONFIG,
    Artifact,
    artifact_folder,
    collect_provenance,
    commit_artifact,
    read_artifact,
    run_folder,
)
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.store import DamagedError, StoreError, commit, explain, read_file, read_manifest, write_bytes
from presto_core.artifacts.validate import UnsafeArtifactError
from presto_core.config.sections import NetworkConfig
from presto_core.errors import UserError
from presto_core.models.model_card import WEIGHTS, ModelCard, load_model, serialize_network
from presto_core.networks.dit import DiT

DAY_S = 24 * 3600.0 + 1
FILES = {"weights.bin": bytes(range(256)) * 100, "deep/er/empty": b"", "words.txt": "ü\n".encode()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(pafs.LocalFileSystem(), str(tmp_path), "place://root")


def commit_report(folder: Folder, **changes: object) -> Artifact:
    fields = {"kind": "report", "artifact_id": "a" * 16, "config_yaml": "seed: 1\n", "parents": {"teacher": "b" * 16}}
    return commit_artifact(folder, **{**fields, "files": FILES, "details": {"report": {"x": 1}}, **changes})  # type: ignore[arg-type]


# --- artifacts


def test_an_artifact_is_read_back_as_it_was_committed(folder: Folder) -> None:
    made = commit_report(folder)
    found = read_artifact(folder)
    assert found == made
    assert (found.id, found.kind, found.uri) == ("a" * 16, "report", "place://root")
    assert found.manifest["parents"] == {"teacher": "b" * 16}
    assert found.manifest["report"] == {"x": 1}
    for name, content in {**FILES, CONFIG: b"seed: 1\n"}.items():
        assert read_file(folder, name, found.manifest) == content
        assert found.manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_the_manifest_lists_exactly_what_is_there(folder: Folder, tmp_path: Path) -> None:
    """No temporary file remains, and the manifest does not list itself."""
    commit_report(folder)
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*FILES, CONFIG, MANIFEST}
    assert read_manifest(folder)["files"].keys() == there - {MANIFEST}


def test_artifacts_and_runs_have_folders_of_their_own(folder: Folder) -> None:
    commit_report(artifact_folder(folder, "a" * 16))
    commit(run_folder(folder, "a" * 16).child("step-1"), {}, {})
    assert folder.list_folders() == ["artifacts", "runs"]
    assert folder.child("artifacts").list_folders() == ["a" * 16]
    assert not run_folder(folder, "a" * 16).exists()
    assert artifact_folder(folder, "a" * 16).uri == f"place://root/artifacts/{'a' * 16}"


def test_provenance_names_versions_and_the_commit() -> None:
    found = collect_provenance()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["python"] == platform.python_version()
    assert found["git_commit"] is None or len(found["git_commit"]) == 40


# --- an incomplete artifact does not exist


def test_a_commit_that_fails_halfway_leaves_nothing_to_read(folder: Folder, tmp_path: Path) -> None:
    """A folder in place of the second file stops the commit as a full disk or a kill would, after the first file."""
    (tmp_path / "second" / "occupied").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"place://root/second"):
        commit_report(folder, files={"first": b"one", "second": b"two", "third": b"three"})
    assert (tmp_path / "first").read_bytes() == b"one"
    assert not (tmp_path / "third").exists()
    assert not folder.exists()
    with pytest.raises(StoreError, match=r"place://root/manifest\.json"):
        read_artifact(folder)


# of killed writers, by this release and by earlier ones, and a file that is no writer's
PARTIAL = (f".{MANIFEST}.0123abcd.partial", "deep/er/.empty.01234567.partial", f"{MANIFEST}.partial")
OTHERS = (".notes.partial", "deep/er/mine.partial", ".other.0123abcd.partial")


@pytest.mark.parametrize(("held", "age_s", "is_deleted"), [(True, 0, True), (False, 0, False), (False, DAY_S, True)])
def test_a_write_that_was_cut_is_not_the_file(
    folder: Folder, tmp_path: Path, held: bool, age_s: float, is_deleted: bool
) -> None:
    """What a killed writer leaves is deleted by the next commit: at once by a run's holder, by its age elsewhere."""
    manifest = commit_report(folder).manifest
    for name in (*PARTIAL, *OTHERS):
        (tmp_path / name).write_bytes(b'{"schema_ver')
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert read_manifest(folder) == manifest
    commit(folder.guard(lambda: None) if held else folder, {"kind": "report"}, FILES)
    assert [name for name in PARTIAL if (tmp_path / name).exists()] == ([] if is_deleted else list(PARTIAL))
    assert all((tmp_path / name).exists() for name in OTHERS)


def test_the_first_write_of_a_process_deletes_what_writers_left_long_ago(folder: Folder, tmp_path: Path) -> None:
    for name, age_s in {".a.0123abcd.partial": DAY_S, ".b.0123abcd.partial": 0, "mine.partial": DAY_S}.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    write_bytes(folder, "c", b"1")
    assert {path.name for path in tmp_path.iterdir()} == {".b.0123abcd.partial", "mine.partial", "c"}


def test_two_writers_of_one_file_leave_a_whole_one(folder: Folder, tmp_path: Path) -> None:
    """The second one starts and ends between the bytes and the name of the first."""
    contents = {"first": b"1" * 3, "second": b"2" * 9}
    calls: list[str] = []

    def check() -> None:
        calls.append("check")
        if len(calls) == 3:
            assert list(tmp_path.glob(".file.*.partial"))
            write_bytes(folder, "file", contents["second"])
            assert (tmp_path / "file").read_bytes() == contents["second"]

    write_bytes(folder.guard(check), "file", contents["first"])
    assert len(calls) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == contents["first"]


def test_a_projects_folder_is_for_its_owner_only(folder: Folder, tmp_path: Path) -> None:
    """Results may be shared, but what a project keeps beside them is private; a folder that exists stays as it is."""
    before = os.umask(0o022)
    try:
        write_bytes(folder.child(".presto/store"), "file", b"1")
        (tmp_path / "shared/.presto").mkdir(parents=True)
        write_bytes(folder.child("shared/.presto/store"), "file", b"1")
    finally:
        os.umask(before)
    modes = {path: (tmp_path / path).stat().st_mode & 0o777 for path in (".presto", ".presto/store", "shared/.presto")}
    assert modes == {".presto": 0o700, ".presto/store": 0o755, "shared/.presto": 0o755}


def test_a_second_commit_keeps_what_was_known(folder: Folder) -> None:
    first = commit(folder, {"kind": "run"}, {"a": b"1", "b": b"2"})
    second = commit(folder, first, {"b": b"3"})
    assert read_file(folder, "a", second) == b"1"
    assert read_file(folder, "b", second) == b"3"
    with pytest.raises(DamagedError, match="/b "):
        read_file(folder, "b", first)


# --- damaged files are rejected


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "longer", "emptied"])
def test_tampered_files_are_refused_by_their_hash(folder: Folder, tmp_path: Path, damage: str) -> None:
    manifest = commit_report(folder).manifest
    content = bytearray(FILES["weights.bin"])
    content[1000] ^= 1 if damage == "flipped bit" else 0
    changes: dict[str, bytes | bytearray] = {"cut": content[:-1], "longer": content + b"\0", "emptied": b""}
    changed = changes.get(damage, content)
    (tmp_path / "weights.bin").write_bytes(changed)
    found = hashlib.sha256(changed).hexdigest()[:12]
    with pytest.raises(DamagedError, match=rf"place://root/weights\.bin .*sha256 .*{found}"):
        read_file(folder, "weights.bin", manifest)
    assert read_file(folder, "words.txt", manifest) == FILES["words.txt"]


def test_missing_and_unlisted_files_are_named(folder: Folder, tmp_path: Path) -> None:
    manifest = commit_report(folder).manifest
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DamagedError, match=r"place://root/weights\.bin"):
        read_file(folder, "weights.bin", manifest)
    (tmp_path / "planted").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"'planted'.*config\.yaml, deep/er/empty, weights\.bin"):
        read_file(folder, "planted", manifest)


OTHER_BYTES = [b"", b"{", b"\xff\xfe\x00garbage", pickle.dumps({"schema_version": 1}), b"[]", b"null", b'"text"']


@pytest.mark.parametrize("content", OTHER_BYTES)
def test_a_manifest_of_other_bytes_is_refused(folder: Folder, tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["{}", '{"schema_version": 2}'])
def test_a_manifest_of_another_schema_is_refused(folder: Folder, tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json .*schema version 1"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/outside"])
def test_a_manifest_cannot_name_files_outside_its_folder(folder: Folder, tmp_path: Path, name: str) -> None:
    """Unpacking an artifact writes files under these names."""
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 1, "files": {name: {"sha256": "", "bytes": 0}}}))
    with pytest.raises(StoreError, match=re.escape(repr(name))):
        read_manifest(folder)


def test_a_folder_that_cannot_be_written_gives_a_one_line_error(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"place://root/file/inside \(1 bytes\)") as caught:
        write_bytes(folder.child("file"), "inside", b"x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("[Errno 28] No space left on device", "disk"),
        ("[Errno 122] Disk quota exceeded", "disk quota"),
        ("[Errno 30] Read-only file system", "another folder"),
        ("[Errno 13] Permission denied: 'x'", "permissions"),
        ("AWS Error ACCESS_DENIED during PutObject", "credentials"),
        ("AWS Error UNKNOWN (HTTP status 400) during UploadPart: IncompleteBody", "AWS_REQUEST_CHECKSUM_CALCULATION"),
        ("curlCode: 60, SSL peer certificate was not OK", "AWS_CA_BUNDLE"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "AWS_CA_BUNDLE"),
        ("curlCode: 56, CONNECT tunnel failed, response 407", "HTTPS_PROXY"),
        ("HTTP status 301", "AWS_REGION"),
        ("something\n  else", "something else"),
    ],
)
def test_system_errors_come_with_a_fix(error: str, hint: str) -> None:
    assert hint in explain(OSError(error))


# --- stored content is never executed


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _write_file, (str(self.target),)


def _write_file(target: str) -> None:
    Path(target).write_text("ran")


def model_artifact(folder: Folder) -> Artifact:
    """Commit a teacher of the smallest network."""
    network = NetworkConfig(dim=8, depth=1, heads=1, patch=1)
    card = ModelCard(
        network=network.model_dump(), channels=2, frames=4, sigma_data=1.0, mean=[0.0] * 2, std=[1.0] * 2,
        codec={}, text={"dim": 4},
    )  # fmt: skip
    files = serialize_network(DiT(network, channels=2, text_dim=4))
    return commit_report(folder, kind="teacher", files=files, details={"model": card.to_dict()})


def test_a_pickle_instead_of_weights_is_never_loaded(folder: Folder, tmp_path: Path) -> None:
    """Even if the manifest lists its hash: weights are read as safetensors, which contains only numbers."""
    trap = tmp_path.parent / f"{tmp_path.name}-sprung"
    torch.save({"weight": Trap(trap)}, tmp_path / "trap.pt")
    manifest = model_artifact(folder).manifest
    load_model(folder, manifest)
    for content in (pickle.dumps(Trap(trap)), (tmp_path / "trap.pt").read_bytes()):
        vouched = commit(folder, manifest, {WEIGHTS: content})
        with pytest.raises(StoreError, match=re.escape(folder.uri)):
            load_model(folder, vouched)
        assert not trap.exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert trap.exists()  # the trap works


def test_weights_that_do_not_fit_are_refused(folder: Folder) -> None:
    manifest = model_artifact(folder).manifest
    other = serialize_network(DiT(NetworkConfig(dim=16, depth=1, heads=1, patch=1), channels=2, text_dim=4))
    with pytest.raises(StoreError, match="size mismatch"):
        load_model(folder, commit(folder, manifest, other))
    with pytest.raises(StoreError, match="report"):
        load_model(folder, commit_report(folder).manifest)


# --- hostile manifests end in one class, whoever reads them

DEEP = 100_000
HOSTILE_PARTS = {
    "nested too deep": '{"schema_version": 1, "x": ' + "[" * DEEP + "]" * DEEP + "}",
    "objects nested too deep": '{"a":' * DEEP,
    "a key twice": '{"schema_version": 1, "kind": "dataset", "kind": "generator"}',
    "a number of a million digits": '{"schema_version": 1, "x": ' + "9" * 1_000_000 + "}",
    "files a list": '{"schema_version": 1, "files": [1]}',
    "files a number": '{"schema_version": 1, "files": 7}',
    "files null": '{"schema_version": 1, "files": null}',
    "an entry a text": '{"schema_version": 1, "files": {"a.json": "x"}}',
    "parents a list": '{"schema_version": 1, "parents": ["x"]}',
    "a parent a list": '{"schema_version": 1, "parents": {"teacher": []}}',
    "dataset a text": '{"schema_version": 1, "dataset": "x"}',
    "shards a number": '{"schema_version": 1, "dataset": {"shards": 7}}',
    "a shard a text": '{"schema_version": 1, "dataset": {"shards": ["x"]}}',
    "model a list": '{"schema_version": 1, "model": [1]}',
    "id a list": '{"schema_version": 1, "id": ["x"]}',
    "kind a mapping": '{"schema_version": 1, "kind": {}}',
    "a lone surrogate": b'{"schema_version": 1, "x": "\xed\xa0\x80"}',
    "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("case", HOSTILE_PARTS)
def test_a_hostile_manifest_is_refused_by_every_reader(folder: Folder, tmp_path: Path, case: str) -> None:
    text = HOSTILE_PARTS[case]
    (tmp_path / MANIFEST).write_bytes(text if isinstance(text, bytes) else str(text).encode())
    for read in (read_manifest, read_artifact, lambda _folder: read_local_manifest(tmp_path)):
        with pytest.raises(UnsafeArtifactError, match=r"manifest\.json") as caught:
            read(folder)
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sha256", [None, 7, ["a"], "", "../../etc/passwd", "A" * 64])
def test_an_entry_without_a_hash_is_never_read(folder: Folder, tmp_path: Path, sha256: object) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    entry = {"bytes": 2} if sha256 is None else {"bytes": 2, "sha256": sha256}
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 1, "files": {"a.json": entry}}))
    with pytest.raises(StoreError, match="64 hexadecimal"):
        read_file(folder, "a.json", read_manifest(folder))


def test_a_manifest_cannot_name_shards_outside_its_folder(folder: Folder, tmp_path: Path) -> None:
    shards = {"shards": [{"file": "../../x.parquet"}]}
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 1, "dataset": shards}))
    with pytest.raises(UnsafeArtifactError, match=re.escape("'../../x.parquet'")):
        read_manifest(folder)


HOSTILE_CARDS: dict[str, dict[str, Any]] = {
    "no card": {"network": None},
    "network a text": {"network": "x"},
    "network a list": {"network": [1]},
    "kind a list": {"network": {"kind": []}},
    "depth negative": {"network": {"depth": -1}},
    "channels a text": {"channels": "x"},
    "channels another number": {"channels": 5},
    "mean NaN": {"mean": [float("nan"), 0.0]},
    "mean infinite": {"mean": [1e999, 0.0]},
    "mean a text": {"mean": "ab"},
    "std too short": {"std": [1.0]},
    "sigma zero": {"sigma_data": 0},
    "text a list": {"text": []},
    "dim huge": {"text": {"dim": 2**62}},
    "budget a text": {"layer_budget": "x"},
    "budget a list": {"layer_budget": [7]},
    "an unknown key": {"unknown": 1},
}


@pytest.mark.parametrize("case", HOSTILE_CARDS)
def test_a_hostile_model_card_is_refused(folder: Folder, case: str) -> None:
    card = {
        "network": {"dim": 8, "depth": 1, "heads": 1, "patch": 1},
        "channels": 2, "frames": 4, "sigma_data": 1.0, "mean": [0.0, 0.0], "std": [1.0, 1.0],
        "codec": {}, "text": {"dim": 4}, "layer_budget": None,
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        load_model(folder, {"kind": "teacher", "files": {}, "model": card | HOSTILE_CARDS[case]})
    assert "model card" in str(caught.value) or "network kind" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_is_compared_when_an_artifact_is_read(folder: Folder, tmp_path: Path) -> None:
    content = content_hash(commit_report(folder).manifest)
    assert read_artifact(folder, content=content).id
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"parents": {"teacher": "f" * 16}}))
    assert read_artifact(folder).id
    with pytest.raises(UnsafeArtifactError, match=content[:12]):
        read_artifact(folder, content=content)


@pytest.mark.parametrize("name", ["index.html", "plots/family.svg", "REPORT.HTML", "x.xhtml"])
def test_no_stage_writes_a_page_into_an_artifact(folder: Folder, name: str) -> None:
    fields = {"kind": "report", "artifact_id": "a" * 16, "config_yaml": "", "parents": {}, "details": {}}
    with pytest.raises(UnsafeArtifactError, match=re.escape(repr(name))):
        commit_artifact(folder, files={name: b"<script>"}, **fields)  # type: ignore[arg-type]
    assert not folder.exists()
