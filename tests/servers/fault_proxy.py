"""A proxy in front of a real S3 server that injects planned faults and counts them.

It forwards bytes unchanged, including the signed Host header, so that clients only need its address:

    with FaultProxy(server.endpoint) as proxy:
        proxy.plan(Fault.RESET, times=2, after_bytes=1000)
        ...  # a client of proxy.endpoint
        assert proxy.injected[Fault.RESET] == 2
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from random import Random
from typing import Any, Self
from urllib.parse import urlparse

HOST = "127.0.0.1"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Fault(StrEnum):
    """A fault of a request; it occurs after some bytes of the body (the request's, otherwise the response's)."""

    REFUSE = "refuse"  # the connection is reset before the server gets the request
    RESET = "reset"  # ... in the middle of a body
    TRUNCATE = "truncate"  # closed gracefully before Content-Length bytes
    SHORT = "short"  # a consistent response to GET with fewer bytes than requested
    ALTER = "alter"  # a response to GET with one byte changed
    SLOW_DOWN = "503"  # 503 SlowDown, without the server
    STALL = "stall"  # nothing is transferred for some seconds, then everything


CONTENT_FAULTS = (Fault.SHORT, Fault.ALTER)


@dataclass
class FaultPlan:
    """A planned fault.

    Attributes:
        times: number of requests it affects.
        probability: of affecting a request, drawn from the proxy's seed.
        after_bytes: bytes of the body that pass before it.
        seconds: duration of a stall.
        method: only requests with this method (GET, PUT, ...); all if empty.
        path: only requests whose path or query contains it.
    """

    fault: Fault
    times: float = inf
    probability: float = 1.0
    after_bytes: int = 0
    seconds: float = 10.0
    method: str = ""
    path: str = ""

    def takes(self, message: Message, random: Random) -> bool:
        method, target = message.head.split(b" ", 2)[:2]
        wanted = self.method or ("GET" if self.fault in CONTENT_FAULTS else "")
        fits = wanted in ("", method.decode()) and self.path in target.decode()
        return fits and self.times > 0 and random.random() < self.probability


@dataclass
class Message:
    """A request or a response, unchanged."""

    head: bytes
    body: bytes

    def cut(self, count: int) -> tuple[bytes, bytes]:
        """Return the bytes that pass and those held back, at least one, so that every fault has an effect."""
        if not self.body:
            return b"", self.head
        passed = min(count, len(self.body) - 1)
        return self.head + self.body[:passed], self.body[passed:]

    def corrupt(self, fault: Fault, count: int) -> bytes:
        """Return the response cut after `count` bytes, or with the byte after them changed."""
        count = min(count, max(len(self.body) - 1, 0))
        if fault is Fault.ALTER:
            return self.head + self.body[:count] + bytes(b ^ 1 for b in self.body[count:][:1]) + self.body[count + 1 :]
        lines = [line for line in self.head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
        lines.insert(1, b"Content-Length: %d" % count)
        return b"\r\n".join(lines) + self.body[:count]


class Peer:
    """One end of an HTTP/1.1 connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.reader = connection, connection.makefile("rb")

    def receive(self, *, without_body: bool = False) -> Message | None:
        """Return the next message; None if the other side has closed the connection."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.reader.readline()
            if not line:
                return None
            head += line
        lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(":", 1) for line in lines[1:] if ":" in line)
        if head.startswith(b"HTTP/1.1 100"):  # the proxy has already sent it
            return self.receive(without_body=without_body)
        if "100-continue" in fields.get("expect", ""):
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if without_body:
            return Message(head, b"")
        if "chunked" in fields.get("transfer-encoding", ""):
            return Message(head, b"".join(self._chunks()))
        return Message(head, self.reader.read(int(fields.get("content-length", 0))))

    def _chunks(self) -> Iterator[bytes]:
        size = -1
        while size:
            line = self.reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line
            if size:
                yield self.reader.read(size + 2)
        while (line := self.reader.readline()) != b"\r\n":
            yield line
        yield line

    def close(self, *, reset: bool = False) -> None:
        if reset:  # a linger time of 0 s makes the kernel send RST instead of FIN
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.reader.close()
        self.connection.close()


class FaultProxy:
    """Listens on its own port, at `endpoint`, while the context is open.

    Attributes:
        injected: number of times each fault occurred.
        requests: number of requests, including broken ones.
    """

    def __init__(self, endpoint: str, *, seed: int = 0) -> None:
        server = urlparse(endpoint)
        self._server = (server.hostname or HOST, server.port or 80)
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._random, self._plans = Random(seed), list[FaultPlan]()
        self._open: set[Peer] = set()
        self.injected: Counter[Fault] = Counter()
        self.requests = 0
        self._listen(0)

    def plan(self, fault: Fault, **how: Any) -> None:
        """Plan a fault for later requests, with the fields of `FaultPlan`; the first matching plan applies."""
        with self._lock:
            self._plans.append(FaultPlan(fault, **how))

    def clear(self) -> None:
        """Remove all plans; the counts stay."""
        with self._lock:
            self._plans.clear()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Stop listening for the block: the kernel refuses connections, which cannot be counted."""
        self._hang_up()
        yield
        self._listen(urlparse(self.endpoint).port or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._hang_up()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server((HOST, port), backlog=128)
        self.endpoint = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._acceptor.start()

    def _hang_up(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for peer in left:
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        client = Peer(connection)
        try:
            server = Peer(socket.create_connection(self._server))
        except OSError:
            return client.close(reset=True)
        with self._lock:
            self._open |= {client, server}
        with suppress(OSError, ValueError):  # either side can disconnect, also in the middle of a chunk
            while self._exchange(client, server):
                pass
        with self._lock:
            self._open -= {client, server}
        client.close()
        return server.close()

    def _exchange(self, client: Peer, server: Peer) -> bool:
        """Forward one request and its response; return False if the connection ends."""
        request = client.receive()
        if request is None:
            return False
        plan = self._draw(request)
        if plan and plan.fault is Fault.REFUSE:
            client.close(reset=True)
            return False
        if plan and plan.fault is Fault.SLOW_DOWN:
            client.connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n" % len(SLOW_DOWN))
            client.connection.sendall(b"" if request.head.startswith(b"HEAD ") else SLOW_DOWN)
            return not request.head.startswith(b"HEAD ")
        in_request = plan is not None and len(request.body) > plan.after_bytes and plan.fault not in CONTENT_FAULTS
        if not self._pass(request, client, server, plan if in_request else None, to=server):
            return False
        answer = server.receive(without_body=request.head.startswith(b"HEAD "))
        return answer is not None and self._pass(answer, client, server, None if in_request else plan, to=client)

    def _pass(self, message: Message, client: Peer, server: Peer, plan: FaultPlan | None, *, to: Peer) -> bool:
        """Forward a message, intact or broken; return False if the connection ends with it."""
        if plan is None:
            to.connection.sendall(message.head + message.body)
            return True
        if plan.fault in CONTENT_FAULTS:
            to.connection.sendall(message.corrupt(plan.fault, plan.after_bytes))
            return True
        passed, held_back = message.cut(plan.after_bytes)
        to.connection.sendall(passed)
        if plan.fault is Fault.STALL:
            self._closing.wait(plan.seconds)
            to.connection.sendall(held_back)
            return True
        client.close(reset=plan.fault is Fault.RESET)
        server.close(reset=plan.fault is Fault.RESET)
        return False

    def _draw(self, request: Message) -> FaultPlan | None:
        with self._lock:
            self.requests += 1
            plan = next((p for p in self._plans if p.takes(request, self._random)), None)
            if plan:
                plan.times -= 1
                self.injected[plan.fault] += 1
            return plan
