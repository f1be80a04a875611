"""Sources in buckets: keys of any spelling are read by every client, or quarantined; one object is a source."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from pipelines.ingest.source_file import open_source_file
from pipelines.ingest.sources import Track, find_tracks
from pipelines.storage.filesystem import open_source
from pipelines.storage.local_s3 import Server
from pipelines.storage.s3_clients import BucketAccess, share_s3_client
from pipelines.storage.s3_settings import endpoint
from presto_core.artifacts.store import StoreError
from presto_core.config.data import IngestConfig

pytestmark = pytest.mark.services
ODD_NAMES = (
    " a.wav", "b .wav", "c+d.wav", "e%20f.wav", "g%.wav", "Ü/ö.wav", "h#i.wav", "j?k=l.wav", "m&n.wav", "o'p\"q.wav",
    "r=s;t.wav", "~u@v:w.wav", "(x) [y] {z}.wav", "..wav", "a..b.wav", "...", "音.wav", "e\u0301.wav", "$!*,.wav",
    "<z>.wav",
)  # fmt: skip


def scan(*sources: str) -> dict[str, Track]:
    return {track.file: track for track in find_tracks(IngestConfig(source=sources))}


@pytest.fixture
def client(object_store: Server):
    return share_s3_client(BucketAccess("latents", endpoint()))


def test_every_client_reads_keys_of_any_spelling(client, tmp_path: Path):
    prefix = f"{tmp_path.name}/odd names+%/"
    for name in ODD_NAMES:
        client.put_object(Bucket="latents", Key=prefix + name, Body=name.encode())
    tracks = scan(f"s3://latents/{prefix}")
    assert set(tracks) == {name for name in ODD_NAMES if name.endswith(".wav")}
    source = open_source(f"s3://latents/{prefix}")
    assert source.fast_path
    for name in ODD_NAMES:
        with open_source_file(source, name) as file:
            assert file.stream.seek(0) == 0
            assert file.stream.read() == name.encode()
        assert source.fast_path().get(source.file_path(name)) == name.encode()
        assert source.fast_path().exists(source.file_path(name))


def test_one_object_is_a_source_with_its_sidecar(client, tmp_path: Path):
    for name in ("x.wav", "x.txt", "y.wav", "x.wav.d/z.wav"):
        client.put_object(Bucket="latents", Key=f"{tmp_path.name}/{name}", Body=b"1")
    folder = f"s3://latents/{tmp_path.name}"
    (only,) = scan(f"{folder}/x.wav").values()
    assert (only.file, only.sidecars, only.uri) == ("x.wav", ("x.txt",), f"{folder}/x.wav")
    assert set(scan(f"{folder}/x.wav.d")) == {"z.wav"}
    assert len(scan(folder)) == 3


def test_a_missing_source_is_named_by_its_setting(object_store: Server):
    with pytest.raises(StoreError, match=r"bucket 'nowhere' .*ingest\.source"):
        scan("s3://nowhere/x")
    with pytest.raises(StoreError, match=r"ingest\.manifest"):
        find_tracks(IngestConfig(source="s3://latents", manifest="s3://nowhere/rows.csv"))
    with pytest.raises(StoreError, match=r"s3://latents/none/x\.wav"):
        scan("s3://latents/none/x.wav")


@pytest.fixture
def odd_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with keys that SeaweedFS does not keep apart, as AWS does; they can be listed only."""
    keys = ["m/a.wav", "m//b.wav", "m/./c.wav", "m/../d.wav", "m/e/../f.wav"]
    entry = "<Contents><Key>{}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path.count("/") == 1 else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            prefix = parse_qs(urlsplit(self.path).query)["prefix"][0]
            found = "".join(entry.format(escape(key)) for key in keys if key.startswith(prefix))
            text = f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_keys_that_clients_read_differently_are_quarantined(object_store: Server, odd_server: None):
    tracks = scan("s3://bucket/m")
    assert {name for name, track in tracks.items() if track.stamp} == {"a.wav"}
    assert {name for name, track in tracks.items() if track.problem} == {"/b.wav", "./c.wav", "../d.wav", "e/../f.wav"}
