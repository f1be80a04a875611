"""Answers with clips: one as a WAV with its settings in a header, several as JSON."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(clip.settings.get("prompt", "")))[:60].strip("-").lower() or "clip"
    headers = {
        "Content-Disposition": f'inline; filename="{name}-seed{clip.settings.get("seed", 0)}.wav"',
        "X-Presto-Clip": json.dumps(_describe(clip), ensure_ascii=True),
    }
    return Response(clip.wav, media_type="audio/wav", headers=headers)


def _describe(clip: MadeClip) -> dict[str, Any]:
    described = asdict(clip)
    described.pop("wav")
    return described | {"waited_ms": round(clip.waited_ms, 1), "took_ms": round(clip.took_ms, 1)}
