"""An HTTP server in front of a real S3 server: below a path, behind TLS, or as a forward proxy; it counts its clients.

with Gateway(server.endpoint, prefix="/s3") as gateway:
    ...  # a client of gateway.endpoint
    assert gateway.clients == {"boto3", "arrow", "urllib3"}
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
CLIENTS = {"Boto3": "boto3", "aws-sdk-cpp": "arrow", "python-urllib3": "urllib3"}  # in their User-Agent
HOP_BY_HOP = {"proxy-authorization", "proxy-connection", "connection", "keep-alive", "expect"}


class Gateway:
    """Forwards requests to an S3 server while the context is open; the signed Host header stays.

    Args:
        prefix: path below which the server appears.
        tls: makes it an https server.
        hosts: makes it a forward proxy, which alone knows these hosts: host:port -> URL of a server.
        user: "name:password" that the forward proxy asks for.
        region: region of all buckets, which the server names as AWS does; empty asks no region.
        knows_trailers: whether it takes checksums after the content, or rejects them as older servers do.

    Attributes:
        clients: which of the three S3 clients sent requests.
        requests: number of requests.
    """

    def __init__(
        self,
        server: str,
        *,
        prefix: str = "",
        tls: ssl.SSLContext | None = None,
        hosts: Mapping[str, str] | None = None,
        user: str = "",
        region: str = "",
        knows_trailers: bool = True,
    ) -> None:
        self.server, self.prefix, self.hosts, self.region = server, prefix, hosts, region
        self.knows_trailers = knows_trailers
        self.authorization = f"Basic {b64encode(user.encode()).decode()}" if user else ""
        self.clients: set[str] = set()
        self.requests = 0
        self._http = ThreadingHTTPServer((HOST, 0), type("Handler", (_Handler,), {"gateway": self}))
        self._http.daemon_threads = True
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_port
        self.endpoint = f"{'https' if tls else 'http'}://{HOST}:{self.port}{prefix}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Forward a request of any method."""
        gateway, url = self.gateway, urlsplit(self.path)
        body = self._read_body()
        if not self._is_admitted():
            return
        server = gateway.server if gateway.hosts is None else gateway.hosts.get(url.netloc)
        target = self.path.removeprefix(f"http://{url.netloc}").removeprefix(gateway.prefix)
        if server is None or not self.path.removeprefix(f"http://{url.netloc}").startswith(gateway.prefix):
            self._answer(502 if gateway.hosts is not None else 404)
        elif gateway.region and f"/{gateway.region}/s3/" not in self.headers.get("Authorization", unquote(self.path)):
            self._answer(301, {"x-amz-bucket-region": gateway.region})
        elif self.headers.get("x-amz-trailer") and not gateway.knows_trailers:
            self._answer(400, content=b"<Error><Code>IncompleteBody</Code><Message>Too short.</Message></Error>")
        else:
            self._forward(server, target, body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        """Read a request's body; chunks with their sizes, as they are sent on."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [b""]
        while parts[-1] != b"0\r\n":
            parts.append(self.rfile.readline())
            if size := int(parts[-1], 16):
                parts.append(self.rfile.read(size + 2))
        while parts[-1] != b"\r\n":
            parts.append(self.rfile.readline())
        return b"".join(parts)

    def do_CONNECT(self) -> None:
        """Pass bytes to a host that only the proxy knows, until one side closes."""
        server = (self.gateway.hosts or {}).get(self.path)
        if not self._is_admitted():
            return
        if server is None:
            self._answer(502)
            return
        address = urlsplit(server)
        with socket.create_connection((str(address.hostname), address.port or 443)) as remote:
            self.send_response(200)
            self.end_headers()
            sides = {self.connection: remote, remote: self.connection}
            while True:
                for side in select.select(list(sides), [], [])[0]:
                    data = side.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    sides[side].sendall(data)

    def _is_admitted(self) -> bool:
        """Count a request; answer 407 if it lacks the proxy's password."""
        self.gateway.requests += 1
        agent = self.headers.get("User-Agent", "")
        self.gateway.clients |= {name for part, name in CLIENTS.items() if part in agent}
        expected = self.gateway.authorization
        if expected and self.headers.get("Proxy-Authorization") != expected:
            self._answer(407, {"Proxy-Authenticate": 'Basic realm="proxy"'})
            return False
        return True

    def _forward(self, server: str, target: str, body: bytes) -> None:
        connection = HTTPConnection(urlsplit(server).netloc, timeout=30)
        connection.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        if self.gateway.prefix:
            connection.putheader("X-Forwarded-Prefix", self.gateway.prefix)
        connection.endheaders(body or None)
        response = connection.getresponse()
        content = response.read()
        dropped = {*HOP_BY_HOP, "transfer-encoding"}  # the answer is whole by now
        headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        headers |= {"x-amz-bucket-region": self.gateway.region} if self.gateway.region else {}
        self._answer(response.status, headers, content)
        connection.close()

    def _answer(self, status: int, headers: Mapping[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response_only(status)
        headers = dict(headers or {})
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
