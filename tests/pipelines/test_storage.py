"""Storage in local folders and on a real S3 server; every wrong setting fails with one message that names it."""

import json
import os
import pickle
import socket
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pyarrow import fs as pafs

from pipelines.storage import filesystem as storage
from pipelines.storage import local_s3
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import ObjectStoreError, Server
from pipelines.storage.s3_clients import BucketAccess, create_s3_client, open_filesystem, share_s3_client
from pipelines.storage.s3_settings import load_settings
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, commit, read_bytes, read_file, read_manifest, write_bytes


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, object_store: Server):
    return open_folder(str(tmp_path) if request.param == "local" else f"s3://latents/{tmp_path.name}")


def get_fast(folder: Folder, name: str) -> bytes:
    assert folder.fast_path
    return folder.fast_path().get(folder.file_path(name))


@pytest.mark.services
def test_what_is_committed_can_be_read(folder):
    commit(folder.child("x y"), {"kind": "test"}, {"a/b.bin": b"1234"})
    assert folder.list_folders() == ["x y"]
    manifest = read_manifest(folder.child("x y"))
    assert read_file(folder.child("x y"), "a/b.bin", manifest) == b"1234"


@pytest.mark.services
def test_without_a_manifest_there_is_nothing(folder):
    assert folder.list_folders() == []
    assert not folder.exists()
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_manifest(folder)


@pytest.mark.services
def test_changed_bytes_are_refused(folder):
    manifest = commit(folder, {}, {"a.bin": b"1234"})
    with folder.filesystem.open_output_stream(folder.file_path("a.bin")) as stream:
        stream.write(b"1235")
    with pytest.raises(StoreError, match=r"a\.bin.*sha256"):
        read_file(folder, "a.bin", manifest)


def test_damaged_or_newer_manifest_is_refused(tmp_path):
    folder = open_folder(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_manifest(folder)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 1"):
        read_manifest(folder)


@pytest.mark.services
@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        ("s3://nowhere/x", {}, r"bucket 'nowhere' .*http://127\.0\.0\.1:\d+; .*storage\.root"),
        ("s3://latents/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "bucket 'latents'; .*AWS_SECRET_ACCESS_KEY"),
        ("s3://latents/x", {"AWS_ACCESS_KEY_ID": "nobody"}, "bucket 'latents'; .*AWS_ACCESS_KEY_ID"),
        ("s3://latents/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"http://127\.0\.0\.1:9 .*AWS_ENDPOINT_URL"),
        ("s3://", {}, "'s3://'"),
        ("gs://bucket/x", {}, "'gs://bucket/x'.*'gs'"),
    ],
)
def test_wrong_settings_are_named(object_store: Server, uri: str, environment, message: str, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=message):
        open_folder(uri, setting="storage.root")


@pytest.mark.services
def test_missing_credentials_are_named(object_store: Server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StoreError, match=r"AWS_ACCESS_KEY_ID .*presto s3 start"):
        open_folder("s3://latents/x")


# --- endpoint, region and credentials of the standard files


@pytest.fixture
def files(object_store: Server, tmp_path: Path, monkeypatch) -> Path:
    """A folder with an AWS config file, whose profile `music` is in use; no other AWS setting is present."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "music")
    for variable, name in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    configure(tmp_path, object_store)
    return tmp_path


def configure(folder: Path, server: Server, *lines: str) -> None:
    text = ["[profile music]", "region = eu-central-1", f"endpoint_url = {server.endpoint}", *lines]
    (folder / "config").write_text("\n".join(text))


def write_keys(folder: Path, server: Server, *, secret: str | None = None) -> None:
    text = f"[music]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {secret or server.secret_key}\n"
    (folder / "credentials").write_text(text)


def grant(folder: Path, server: Server, *, secret: str | None = None, minutes: float = 5) -> None:
    """Write expiring keys as a role provides them; boto3 renews them in the last ten minutes."""
    expires = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
    keys = {"AccessKeyId": server.access_key, "SecretAccessKey": secret or server.secret_key, "Expiration": expires}
    (folder / "granted.json").write_text(json.dumps({"Version": 1, **keys}))


@pytest.mark.services
def test_a_profile_gives_endpoint_region_and_keys(files: Path, object_store: Server):
    write_keys(files, object_store)
    folder = open_folder(f"s3://latents/{files.name}")
    assert folder.filesystem.region == load_settings().region == "eu-central-1"
    assert load_settings().endpoint == object_store.endpoint
    commit(folder, {}, {"a": b"1"})
    assert folder.exists()


@pytest.mark.services
def test_the_environment_goes_before_the_profile(files: Path, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert load_settings().region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert (load_settings().region, load_settings().endpoint) == ("eu-north-1", "http://127.0.0.1:9")


@pytest.mark.services
def test_an_unknown_profile_is_named(files: Path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "noise")
    with pytest.raises(StoreError, match=r"\(noise\).*AWS_PROFILE"):
        open_folder("s3://latents/x")


@pytest.mark.services
def test_keys_of_a_role_are_renewed_under_an_open_folder(files: Path, object_store: Server):
    """The server shows which keys are used: wrong keys after they are granted, then right ones again."""
    configure(files, object_store, f"credential_process = cat {files / 'granted.json'}")
    grant(files, object_store)
    folder = open_folder(f"s3://latents/{files.name}")
    commit(folder, {}, {"a": b"1"})
    access = BucketAccess("latents", object_store.endpoint)
    client, key = share_s3_client(access), f"{files.name}/a"
    assert get_fast(folder, "a") == client.get_object(Bucket="latents", Key=key)["Body"].read() == b"1"
    grant(files, object_store, secret="wrong")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_manifest(folder)
    with pytest.raises(OSError, match="403"):
        get_fast(folder, "a")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.get_object(Bucket="latents", Key=key)
    grant(files, object_store)
    assert read_manifest(folder)["files"].keys() == {"a"}
    assert get_fast(folder, "a") == client.get_object(Bucket="latents", Key=key)["Body"].read() == b"1"
    grant(files, object_store, minutes=-5)
    with pytest.raises(StoreError, match=r"expired; .*AWS_PROFILE"):
        read_manifest(folder)


@pytest.mark.services
def test_a_credentials_file_that_is_rewritten_is_followed(files: Path, object_store: Server):
    write_keys(files, object_store)
    folder = open_folder(f"s3://latents/{files.name}")
    assert not folder.exists()
    write_keys(files, object_store, secret="wrong")
    with pytest.raises(StoreError, match=f"{folder.uri}.*credentials"):
        folder.exists()
    write_keys(files, object_store)
    assert not folder.exists()


@pytest.mark.services
def test_a_session_token_goes_with_the_keys(object_store: Server, monkeypatch):
    """The server rejects the unknown session."""
    folder = open_folder("s3://latents/token")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "unknown")
    with pytest.raises(StoreError, match=r"s3://latents/token.*credentials"):
        folder.list_files()


@pytest.mark.services
def test_a_server_on_this_machine_is_reached_without_the_proxy(object_store: Server, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing answers there
    folder = open_folder("s3://latents/proxy")
    write_bytes(folder, "a", b"1")
    assert get_fast(folder, "a") == read_bytes(folder, "a") == b"1"


@pytest.mark.services
def test_a_folder_travels_without_its_keys(object_store: Server):
    folder = open_folder("s3://latents/travels")
    assert not folder.exists()
    packed = pickle.dumps(folder)
    assert object_store.secret_key.encode() not in packed
    assert not pickle.loads(packed).exists()


@pytest.mark.services
def test_without_an_endpoint_requests_go_to_aws(files: Path, object_store: Server, monkeypatch):
    """The host name has the bucket, as AWS requires; an HTTP proxy records the request."""
    (files / "config").write_text("[profile music]\nregion = eu-central-1\n")
    write_keys(files, object_store)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        requests: list[bytes] = []

        def refuse() -> None:
            with suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    requests.append(connection.recv(1000))
                    connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(OSError, match="NETWORK_CONNECTION"):
            open_filesystem(BucketAccess("latents", None)).get_file_info("latents/x")
        listener.shutdown(socket.SHUT_RDWR)
    assert {request.split(b"\r\n")[0] for request in requests} == {
        b"CONNECT latents.s3.eu-central-1.amazonaws.com:443 HTTP/1.1"
    }
    assert create_s3_client().meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"


@pytest.mark.services
def test_the_file_system_stays_while_its_keys_do(object_store: Server):
    """It is looked up on every use, and its connections are kept."""
    first, second = open_folder("s3://latents/x"), open_folder("s3://latents/y")
    assert first.filesystem is first.filesystem is second.filesystem


# --- disks and servers


def test_a_full_disk_is_explained():
    # /dev/full can be opened and rejects every byte: a real "no space left on device"
    from presto_core.artifacts.store import explain

    with (
        pytest.raises(OSError, match=r"(?i)no space") as caught,
        pafs.LocalFileSystem().open_output_stream("/dev/full") as s,
    ):
        s.write(b"x" * 10_000_000)
    assert "disk" in explain(caught.value)


@pytest.mark.services
def test_server_is_started_once_and_keeps_its_data(tmp_path, monkeypatch):
    server, started = local_s3.start(tmp_path)
    try:
        assert started
        assert local_s3.start(tmp_path) == (server, False)
        for file in ("server.json", "identities.json"):
            assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage.create_bucket("kept")
        commit(open_folder("s3://kept/a"), {}, {"x": b"1"})
    finally:
        assert local_s3.stop(tmp_path)
    assert not local_s3.stop(tmp_path)
    again, started = local_s3.start(tmp_path)
    try:
        assert started
        assert again.secret_key == server.secret_key
        monkeypatch.setenv("AWS_ENDPOINT_URL", again.endpoint)
        assert read_manifest(open_folder("s3://kept/a"))["files"]["x"]["bytes"] == 1
    finally:
        local_s3.stop(tmp_path)


def test_taken_port_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ObjectStoreError, match=f"port {port} of 127.0.0.1 .*--port"):
            local_s3.start(tmp_path, port=port)
