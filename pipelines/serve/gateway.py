"""The deployment that speaks HTTP: routes of the service, each a few lines between a request and the dispatcher."""

# Serve copies the class to its process as it is when `ingress` sees it: annotations are not deferred, since FastAPI
# could not look them up there, and nothing that a route calls is defined below the class
import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from ray import serve
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from pipelines.serve.access_log import open_log
from pipelines.serve.body import check_content_type, decode_upload, read_body, read_form
from pipelines.serve.clips import ClipJob, EditJob
from pipelines.serve.dispatcher import Dispatcher
from pipelines.serve.guard import Guard, Service
from pipelines.serve.metrics import ServiceMetrics
from pipelines.serve.openapi import describe_errors, describe_form, describe_json
from pipelines.serve.refusal import Refusal, RefusedError, refuse
from pipelines.serve.requests import EditRequest, GenerateRequest, check_limits, parse_request
from pipelines.serve.responses import get_visit, make_response, start_stream, wants_json
from pipelines.serve.settings import ServeSettings, check_access, read_token

PAGE = Path(__file__).parent / "page"
READY_S = 5.0

app = FastAPI(title="Presto", version="1", docs_url=None, redoc_url=None, responses=describe_errors())
app.add_middleware(Guard)


@app.exception_handler(HTTPException)
async def explain_http_error(_request: Request, error: HTTPException) -> JSONResponse:
    """Errors of the router have the form of all others."""
    fix = {404: "see /docs", 405: "see /docs for the methods of this path"}.get(error.status_code, "see /docs")
    return JSONResponse(Refusal(error.status_code, str(error.detail), fix).to_json(), error.status_code, error.headers)


@app.exception_handler(RefusedError)
async def answer_refusal(request: Request, error: RefusedError) -> JSONResponse:
    get_visit(request).notes["refused"] = error.refusal.what
    return JSONResponse(error.refusal.to_json(), error.refusal.status, error.refusal.headers)


@serve.deployment(name="Gateway")
@serve.ingress(app)
class Gateway:
    """The one HTTP front of all replicas."""

    def __init__(self, settings: ServeSettings, replicas: Any) -> None:
        check_access(settings)
        token = read_token(settings.token_file) if settings.token_file else ""
        metrics = ServiceMetrics()
        self._settings, self._metrics = settings, metrics
        self._dispatcher = Dispatcher(replicas, settings, metrics)
        self._decoding = asyncio.Semaphore(2)
        app.state.service = Service(settings, token, open_log(settings), metrics)

    @app.get("/healthz", summary="Is the service alive?", tags=["operation"])
    async def is_alive(self) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", summary="Can it make clips now?", tags=["operation"])
    async def is_ready(self) -> PlainTextResponse:
        """Ask a replica; 503 if none answers."""
        try:
            async with asyncio.timeout(READY_S):
                await self._dispatcher.list_models()
        except (TimeoutError, RefusedError):
            return PlainTextResponse("no replica answers\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics", summary="Figures for Prometheus", tags=["operation"])
    async def show_metrics(self) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", summary="Models that requests may name", tags=["music"])
    async def list_models(self) -> JSONResponse:
        models = await self._dispatcher.list_models()
        return JSONResponse(
            {"models": [asdict(model) for model in models], "limits": self._settings.limits.model_dump()}
        )

    @app.post(
        "/v1/generate",
        summary="Make clips from a prompt",
        tags=["music"],
        openapi_extra=describe_json(GenerateRequest),
    )
    async def generate(self, request: Request) -> Response:
        """Return a WAV; or JSON with base64, if several clips or `Accept: application/json` ask for it.

        With `stream`, the WAV is sent while the piece is decoded; if it ends early, the connection is cut.
        """
        limits = self._settings.limits
        check_content_type(request, "application/json")
        body = await read_body(request, most_bytes=limits.max_json_bytes, timeout_s=limits.body_timeout_s)
        wanted = parse_request(GenerateRequest, body)
        check_limits(wanted, limits)
        visit = get_visit(request)
        visit.note_request(wanted)
        fields = wanted.model_dump(exclude_defaults=True) | {"prompt": wanted.prompt}
        fields.pop("clips", None)
        if wanted.stream:
            if wants_json(request):
                raise refuse(422, "stream gives a WAV, not JSON", "leave stream or Accept: application/json out")
            return await start_stream(self._dispatcher.stream(ClipJob(visit.id, fields, "stream_piece")), visit)
        method = "make_piece" if wanted.is_piece else "generate"
        jobs = [ClipJob(visit.id, fields | {"seed": wanted.seed + number}, method) for number in range(wanted.clips)]
        return make_response(await self._dispatcher.make(jobs), visit, as_json=wants_json(request) or wanted.clips > 1)

    @app.post(
        "/v1/edit",
        summary="Vary, repaint or extend a sound",
        tags=["music"],
        openapi_extra=describe_form(EditRequest),
    )
    async def edit(self, request: Request) -> Response:
        """Return a WAV, or JSON as `/v1/generate` does; outside of what is made anew, the sound is kept bit for bit."""
        limits = self._settings.limits
        content, settings = await read_form(request, limits)
        wanted = parse_request(EditRequest, settings)
        check_limits(wanted, limits)
        visit = get_visit(request)
        visit.note_request(wanted)
        async with self._decoding:
            upload = await asyncio.to_thread(decode_upload, content, most_seconds=limits.max_upload_seconds)
        fields = wanted.model_dump(exclude_defaults=True) | {"prompt": wanted.prompt, "operation": wanted.operation}
        job = EditJob(visit.id, fields, upload.audio.tobytes(), len(upload.audio), upload.sample_rate_hz)
        return make_response(await self._dispatcher.make([job]), visit, as_json=wants_json(request))

    @app.get("/", include_in_schema=False)
    async def show_page(self) -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def show_docs(self) -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def show_file(self, name: str) -> FileResponse:
        if name not in {file.name for file in PAGE.iterdir()}:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGE / name)
