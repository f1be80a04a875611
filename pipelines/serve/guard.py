"""Around every request: who may come in, what the answer's headers are, its line in the log, and its figures."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.access_log import AccessLog
from pipelines.serve.metrics import ServiceMetrics
from pipelines.serve.refusal import Refusal, RefusedError, refuse, shorten_value
from pipelines.serve.requests import Sampling
from pipelines.serve.settings import ServeSettings

OPEN_PATHS = ("/healthz", "/readyz", "/", "/docs", "/openapi.json")
OPEN_PREFIX = "/page/"
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]", "::1"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware; what it needs is in `app.state.service` once the deployment starts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        service: Service = scope["app"].state.service
        visit = Visit(scope, send, service)
        try:
            service.check_entry(scope)
            await self._app(scope, receive, visit.send)
            if not visit.is_answered:  # a streamed answer just ends when its client leaves
                visit.note_left()
        except RefusedError as error:
            await visit.refuse(error.refusal, receive)
        except asyncio.CancelledError:
            visit.note_left()
            raise
        except Exception as error:
            refused = error.__cause__ if isinstance(error.__cause__, RefusedError) else None
            if visit.status and refused:  # while its answer was sent: raised on, so that the connection is cut
                visit.notes["refused"], visit.status = refused.refusal.what, refused.refusal.status
                raise
            service.log.write(event="failed", request_id=visit.id, problem=f"{type(error).__name__}: {error}"[:500])
            if visit.status:
                raise
            await visit.refuse(
                Refusal(500, "the service failed", "try again; its log names this id", visit.id), receive
            )
        finally:
            visit.close()


class Service:
    """What all requests of one dispatcher share."""

    def __init__(self, settings: ServeSettings, token: str, log: AccessLog, metrics: ServiceMetrics) -> None:
        self.settings, self.log, self.metrics = settings, log, metrics
        self._token = token.encode()

    def check_entry(self, scope: Scope) -> None:
        """Refuse who may not come in: without the token, or, where there is none, by way of another site's page."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self._token and _strip_port(host) not in LOOPBACK_NAMES | {self.settings.host}:
            # another site's name that was made to point here (DNS rebinding)
            raise refuse(403, "the Host header names another machine", "use http://127.0.0.1", value=host)
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != host:
            raise refuse(403, "the request comes from the page of another site", "use this service's own", value=origin)
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or not self._token:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise refuse(
                401, "the token is missing or wrong", "send Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


class Visit:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send, service: Service) -> None:
        self.id, self.status, self.is_answered = secrets.token_hex(8), 0, False
        self._scope, self._send, self._service, self._started = scope, send, service, time.perf_counter()
        self.notes: dict[str, Any] = {}
        scope.setdefault("state", {})
        scope["state"]["visit"] = self

    def note_request(self, request: Sampling) -> None:
        """Keep for the log what was asked for."""
        fields = request.model_dump(exclude_defaults=True, exclude={"prompt", "negative_prompt", "sections"})
        self.notes["asked"] = fields
        self.notes["prompt"] = request.prompt  # the log leaves it out, unless the operator wants it

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Presto-Request"] = self.id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.is_answered = True

    def note_left(self) -> None:
        """Count a client that left before the end of its answer."""
        self._service.metrics.left.inc()
        self.status = 499

    async def refuse(self, refusal: Refusal, receive: Receive) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            self.notes["refused"] = refusal.what
            await JSONResponse(refusal.to_json(), refusal.status, refusal.headers)(self._scope, receive, self.send)

    def close(self) -> None:
        """Write the request's line, and count it; of its path only what is a route."""
        took_s = time.perf_counter() - self._started
        route = getattr(self._scope.get("route"), "path", "other")
        self._service.metrics.requests.labels(route, str(self.status)).inc()
        self._service.metrics.seconds.labels(route).observe(took_s)
        if route in ("/healthz", "/readyz", "/metrics"):
            return
        client = (self._scope.get("client") or ("",))[0]
        self._service.log.write(
            event="request", request_id=self.id, client=client, method=self._scope["method"],
            path=shorten_value(self._scope["path"]), status=self.status, took_ms=round(took_s * 1e3, 1), **self.notes,
        )  # fmt: skip


def _strip_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
