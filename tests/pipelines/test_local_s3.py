"""The local S3 server takes nothing from, and gives nothing to, who has no credentials, at any port."""

from __future__ import annotations

import socket
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest

from pipelines.storage import local_s3
from pipelines.storage.local_s3 import Server

pytestmark = pytest.mark.services
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # what a gRPC client sends first
# a page of the master and what the volume says of its disk: no name, no content
HARMLESS = {("GET", "/"), ("GET", "/status")}
REQUESTS = (
    *HARMLESS, ("GET", "/dir/assign"), ("GET", "/dir/lookup?volumeId=1"), ("GET", "/dir/status"),
    ("GET", "/vol/status"),
    ("GET", "/vol/grow?count=1"), ("GET", "/col/delete?collection=music"), ("GET", "/buckets/music/song"),
    ("GET", "/buckets/music/?limit=9"), ("GET", "/music/song"), ("GET", "/metrics"), ("POST", "/submit"),
    ("POST", "/buckets/music/evil"), ("PUT", "/music/evil"), ("DELETE", "/buckets/music/song"),
    ("DELETE", "/music/song"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3") / "object_store"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    started, _ = local_s3.start(folder)
    yield started
    local_s3.stop(folder)


@pytest.fixture(scope="module")
def ports(server: Server) -> list[int]:
    listening = [c for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    assert len(listening) >= 7
    return [connection.laddr.port for connection in listening]


def send(port: int, method: str, path: str) -> int:
    body = b"evil" if method in ("POST", "PUT") else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:  # not HTTP
        return 0


def test_no_port_reads_or_writes_for_others(server: Server, ports: list[int]):
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="music")
    client.put_object(Bucket="music", Key="song", Body=b"la" * 1000)
    obeyed = [
        (port, request)
        for port in ports
        for request in REQUESTS
        if 200 <= send(port, *request) < 300 and request not in HARMLESS
    ]
    assert not obeyed
    assert client.get_object(Bucket="music", Key="song")["Body"].read() == b"la" * 1000
    assert [item["Key"] for item in client.list_objects_v2(Bucket="music")["Contents"]] == ["song"]


def test_no_port_speaks_grpc_without_the_certificate(ports: list[int]):
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    anyone.set_alpn_protocols(["h2"])
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
            plain.sendall(HTTP2)
            assert is_closed_or_http1(plain), port
        with socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
            try:
                with anyone.wrap_socket(plain) as encrypted:
                    encrypted.sendall(HTTP2)
                    assert not encrypted.recv(9), port
            except OSError:  # ssl.SSLError is one: no TLS at this port, or a certificate is required
                continue


def is_closed_or_http1(connection: socket.socket) -> bool:
    try:
        answer = connection.recv(9)
    except (ConnectionError, TimeoutError):
        return True
    return not answer or answer.startswith((b"HTTP/1", b"\x15\x03"))  # HTTP/2 answers with a frame of settings


def test_files_are_their_owner_s_and_nothing_is_left_behind(folder: Path, server: Server, ports: list[int]):
    for path in (folder, folder / "keys"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("server.json", "identities.json", "keys/key.pem"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    own = [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in own)
    assert local_s3.stop(folder)
    assert not [path for path in own if path.exists()]
