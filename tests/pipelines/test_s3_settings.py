"""Every S3 client obeys the same settings: endpoints with paths, proxies, certificates, regions, on a real server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.filesystem import open_folder, open_source
from pipelines.storage.local_s3 import Server
from pipelines.storage.ranged_download import ByteRange, fetch
from pipelines.storage.s3_clients import create_s3_client
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from tests.servers.gateway import Gateway
from tests.servers.tls_authority import make_authority

ALL = {"boto3", "arrow", "urllib3"}
SECRET = "geheim/1@"  # has characters that URLs escape


pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def clean(object_store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no file of certificates and no profile of this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")


def use_every_client(uri: str, tmp_path: Path) -> None:
    """Write, list and read by Arrow, by single requests and by boto3."""
    folder = open_folder(uri)
    assert folder.fast_path
    folder.fast_path().put(folder.file_path("a"), b"12")
    assert folder.fast_path().get(folder.file_path("a")) == b"12"
    with folder.filesystem.open_output_stream(folder.file_path("b")) as stream:
        stream.write(b"345")
    assert [info.base_name for info in folder.list_files()] == ["a", "b"]
    assert read_bytes(folder, "b") == b"345"
    assert create_exclusive(folder, "c", b"6")
    assert not create_exclusive(folder, "c", b"7")
    (tmp_path / "copy").write_bytes(b"000")
    fetch(folder, ByteRange("b", 1, 2), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"045"
    folder.delete()


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_endpoint_with_a_path(object_store: Server, slash: str, tmp_path: Path, monkeypatch):
    with Gateway(object_store.endpoint, prefix="/s3/here") as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint + slash)
        use_every_client(f"s3://latents/{tmp_path.name}", tmp_path)
        assert gateway.clients == ALL


def test_a_server_that_does_not_know_new_checksums(object_store: Server, tmp_path: Path, monkeypatch):
    with Gateway(object_store.endpoint, knows_trailers=False) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
        folder = open_folder(f"s3://latents/{tmp_path.name}")
        with pytest.raises(StoreError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            write_bytes(replace(folder, fast_path=None), "a", b"1")
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        use_every_client(folder.uri, tmp_path)


# --- proxies


@pytest.fixture
def internal(object_store: Server, monkeypatch) -> Iterator[Gateway]:
    """A forward proxy with a password; the endpoint is a host that only the proxy knows."""
    hosts = {"s3.internal:9000": object_store.endpoint}
    with Gateway(object_store.endpoint, hosts=hosts, user=f"me:{SECRET}") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.internal:9000")
        yield proxy


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_a_proxy_is_used_by_all(internal: Gateway, variable: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(variable, f"http://me:geheim%2F1%40@127.0.0.1:{internal.port}")
    use_every_client(f"s3://latents/{tmp_path.name}", tmp_path)
    assert internal.clients == ALL


def test_a_proxy_that_refuses_is_named_without_its_password(internal: Gateway, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{internal.port}")
    with pytest.raises(StoreError, match=f"{internal.port}; correct HTTP_PROXY"):
        open_folder("s3://latents/x")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:wrong-{SECRET.replace('/', '%2F')}127.0.0.1:{internal.port}")
    with pytest.raises(StoreError, match="HTTP_PROXY") as caught:
        open_folder("s3://latents/x")
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("bypass", ["NO_PROXY", "no_proxy"])
def test_hosts_in_no_proxy_are_reached_directly(internal: Gateway, bypass: str, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:geheim%2F1%40@127.0.0.1:{internal.port}")
    monkeypatch.setenv(bypass, ".internal")
    with pytest.raises(StoreError, match=r"s3\.internal:9000 does not answer"):
        open_folder("s3://latents/x")
    assert internal.requests == 0


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory):
    return make_authority(tmp_path_factory.mktemp("tls"), ["127.0.0.1", "s3.internal"])


@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "ca_bundle", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_is_trusted_by_all(object_store, authority, setting, tmp_path: Path, monkeypatch):
    ca_file, tls = authority
    with Gateway(object_store.endpoint, tls=tls) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
        with pytest.raises(StoreError, match=r"AWS_CA_BUNDLE"):
            open_folder("s3://latents/x")
        if setting == "ca_bundle":
            (tmp_path / "config").write_text(f"[default]\nca_bundle = {ca_file}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        else:
            monkeypatch.setenv(setting, str(ca_file))
        use_every_client(f"s3://latents/{tmp_path.name}", tmp_path)
        assert gateway.clients == ALL


def test_tls_through_a_proxy(object_store: Server, authority, tmp_path: Path, monkeypatch):
    ca_file, tls = authority
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ca_file))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.internal")
    with (
        Gateway(object_store.endpoint, tls=tls) as server,
        Gateway(server.endpoint, hosts={"s3.internal:443": server.endpoint}, user=f"me:{SECRET}") as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:geheim%2F1%40@127.0.0.1:{proxy.port}")
        use_every_client(f"s3://latents/{tmp_path.name}", tmp_path)
        assert server.clients == ALL
        assert proxy.requests >= 3


def test_a_server_without_tls_behind_https_is_named(object_store: Server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint.replace("http:", "https:"))
    with pytest.raises(StoreError, match="write http://"):
        open_folder("s3://latents/x")


# --- regions and public buckets


def test_a_bucket_of_another_region_is_named(object_store: Server, tmp_path: Path, monkeypatch):
    """boto3 would follow the redirect, and the other clients would fail."""
    with Gateway(object_store.endpoint, region="eu-west-3") as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
        with pytest.raises(StoreError, match="AWS_REGION=eu-west-3"):
            open_folder("s3://latents/x")
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        use_every_client(f"s3://latents/{tmp_path.name}", tmp_path)


@pytest.fixture
def public(object_store: Server, monkeypatch) -> Iterator[str]:
    """A bucket that everybody can read, with one object; no credentials are set."""
    client = create_s3_client()
    client.create_bucket(Bucket="public")
    allowed = {"Effect": "Allow", "Principal": "*", "Resource": ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]}
    statement = allowed | {"Action": ["s3:GetObject", "s3:ListBucket"]}
    client.put_bucket_policy(Bucket="public", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    client.put_object(Bucket="public", Key="music/x.wav", Body=b"1234")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        yield "s3://public/music"
    client.delete_object(Bucket="public", Key="music/x.wav")
    client.delete_bucket(Bucket="public")


def test_a_public_bucket_is_a_source_without_credentials(public: str):
    source = open_source(public)
    assert source.fast_path
    assert [info.base_name for info in source.list_files()] == ["x.wav"]
    assert read_bytes(source, "x.wav") == source.fast_path().get("public/music/x.wav") == b"1234"
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_folder(public, setting="storage.root")
    with pytest.raises(StoreError, match=r"latents.*ingest\.source.*AWS_ACCESS_KEY_ID"):
        open_source("s3://latents/x")
