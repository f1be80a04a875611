"""Storage: local folders and a real S3 server; each wrong setting ends in one sentence with its mend."""

import json
import socket
import stat

import pytest

from pipelines import embedded_s3, storage
from pipelines.embedded_s3 import ObjectStoreError, Server
from pipelines.storage import open_folder
from presto_core.registry.store import StoreError, commit, read_file, read_manifest


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, object_store: Server):
    return open_folder(str(tmp_path) if request.param == "local" else f"s3://latents/{tmp_path.name}")


@pytest.mark.services
def test_what_is_committed_can_be_read(folder):
    commit(folder.child("x y"), {"kind": "test"}, {"a/b.bin": b"1234"})
    assert folder.folders() == ["x y"]
    manifest = read_manifest(folder.child("x y"))
    assert read_file(folder.child("x y"), "a/b.bin", manifest) == b"1234"


@pytest.mark.services
def test_without_a_manifest_there_is_nothing(folder):
    assert folder.folders() == []
    assert not folder.exists()
    with pytest.raises(StoreError, match="does not exist"):
        read_manifest(folder)


@pytest.mark.services
def test_changed_bytes_are_refused(folder):
    manifest = commit(folder, {}, {"a.bin": b"1234"})
    with folder.filesystem.open_output_stream(folder.file("a.bin")) as stream:
        stream.write(b"1235")
    with pytest.raises(StoreError, match=r"a\.bin is damaged: sha256"):
        read_file(folder, "a.bin", manifest)


def test_damaged_or_newer_manifest_is_refused(tmp_path):
    folder = open_folder(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        read_manifest(folder)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 1"):
        read_manifest(folder)


@pytest.mark.services
@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        ("s3://nowhere/x", {}, r"bucket 'nowhere' does not exist at http://127\.0\.0\.1:\d+; create it"),
        ("s3://latents/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses these credentials for bucket 'latents'"),
        ("s3://latents/x", {"AWS_ACCESS_KEY_ID": "nobody"}, "refuses these credentials"),
        ("s3://latents/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"http://127\.0\.0\.1:9 does not answer"),
        ("s3://", {}, "names no bucket"),
        ("gs://bucket/x", {}, "scheme 'gs' is not supported"),
    ],
)
def test_wrong_settings_are_named(object_store: Server, uri: str, environment, message: str, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage._require_bucket.cache_clear()
    with pytest.raises(StoreError, match=message):
        open_folder(uri)
    storage._require_bucket.cache_clear()


@pytest.mark.services
def test_missing_credentials_are_named(object_store: Server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    storage._require_bucket.cache_clear()
    with pytest.raises(StoreError, match=r"no S3 credentials found; set AWS_ACCESS_KEY_ID .*presto up"):
        open_folder("s3://latents/x")
    storage._require_bucket.cache_clear()


def test_full_disk_is_one_sentence():
    # /dev/full takes a file's open and refuses its bytes: a real "no space left on device"
    from pyarrow import fs as pafs

    from presto_core.registry.store import reason

    with (
        pytest.raises(OSError, match=r"(?i)no space") as caught,
        pafs.LocalFileSystem().open_output_stream("/dev/full") as s,
    ):
        s.write(b"x" * 10_000_000)
    assert "free some space" in reason(caught.value)


@pytest.mark.services
def test_server_is_started_once_and_keeps_its_data(tmp_path, monkeypatch):
    server, started = embedded_s3.start(tmp_path)
    try:
        assert started
        assert embedded_s3.start(tmp_path) == (server, False)
        for file in ("server.json", "identities.json"):
            assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage.create_bucket("kept")
        commit(open_folder("s3://kept/a"), {}, {"x": b"1"})
    finally:
        assert embedded_s3.stop(tmp_path)
    assert not embedded_s3.stop(tmp_path)
    again, started = embedded_s3.start(tmp_path)
    try:
        assert started
        assert again.secret_key == server.secret_key
        monkeypatch.setenv("AWS_ENDPOINT_URL", again.endpoint)
        assert read_manifest(open_folder("s3://kept/a"))["files"]["x"]["bytes"] == 1
    finally:
        embedded_s3.stop(tmp_path)


def test_taken_port_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ObjectStoreError, match=f"port {port} of 127.0.0.1 is taken; choose another with --port"):
            embedded_s3.start(tmp_path, port=port)
