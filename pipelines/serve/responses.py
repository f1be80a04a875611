"""Answers with clips: one as a WAV with its settings in a header, at once or as it is made; several as JSON."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pipelines.serve.clips import MadeClip
from pipelines.serve.guard import Visit


def get_visit(request: Request) -> Visit:
    visit: Visit = request.scope["state"]["visit"]
    return visit


def wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def make_response(clips: list[MadeClip], visit: Visit, *, as_json: bool) -> Response:
    visit.notes |= {"batch": [clip.batch for clip in clips], "model_id": clips[0].model_id}
    if as_json:
        return JSONResponse(
            {"clips": [_describe(clip) | {"wav": base64.b64encode(clip.wav).decode()} for clip in clips]}
        )
    (clip,) = clips
    return Response(clip.wav, media_type="audio/wav", headers=_make_headers(clip))


async def start_stream(parts: AsyncGenerator[MadeClip | bytes], visit: Visit) -> Response:
    """Return the answer of a streamed piece once its beginning is there; raises RefusedError if there is none."""
    head = await anext(parts)
    assert isinstance(head, MadeClip)
    visit.notes |= {"batch": [head.batch], "model_id": head.model_id}

    async def iter_wav() -> AsyncGenerator[bytes]:
        async with aclosing(parts):
            yield head.wav
            async for part in parts:
                assert isinstance(part, bytes)
                yield part

    # RIFF: the second word is the length of all that follows it
    length = struct.unpack("<I", head.wav[4:8])[0] + 8
    return StreamingResponse(
        iter_wav(), media_type="audio/wav", headers=_make_headers(head) | {"Content-Length": str(length)}
    )


def _make_headers(clip: MadeClip) -> dict[str, str]:
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(clip.settings.get("prompt", "")))[:60].strip("-").lower() or "clip"
    return {
        "Content-Disposition": f'inline; filename="{name}-seed{clip.settings.get("seed", 0)}.wav"',
        "X-Presto-Clip": json.dumps(_describe(clip), ensure_ascii=True),
    }


def _describe(clip: MadeClip) -> dict[str, Any]:
    described = asdict(clip)
    described.pop("wav")
    return described | {"waited_ms": round(clip.waited_ms, 1), "took_ms": round(clip.took_ms, 1)}
