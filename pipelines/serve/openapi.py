"""Pieces of /openapi.json that FastAPI cannot find out, because bodies are read and checked by the service itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

ERRORS = {
    400: "the body cannot be read",
    401: "the token is missing or wrong",
    404: "no such model",
    408: "the body arrives too slowly",
    413: "the body or the sound is too large",
    415: "the body or the sound is of another type",
    422: "a field is out of range",
    429: "too many requests wait; Retry-After says when to come again",
    503: "no replica answers",
    504: "it takes longer than the service allows",
}


def describe_errors() -> dict[int | str, dict[str, Any]]:
    """Return the errors of every route, with the body they share."""
    text = {"type": "string"}
    error = {"type": "object", "properties": {"what": text, "value": text, "fix": text}}
    content = {"application/json": {"schema": {"type": "object", "properties": {"error": error}}}}
    return {status: {"description": description, "content": content} for status, description in ERRORS.items()}


def describe_json(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a JSON body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(kind)}}}} | _wav()


def describe_form(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a form with a sound and its settings."""
    sound = {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3."}
    schema = {
        "type": "object",
        "required": ["audio", "settings"],
        "properties": {"audio": sound, "settings": _inline(kind)},
    }
    body = {
        "content": {
            "multipart/form-data": {"schema": schema, "encoding": {"settings": {"contentType": "application/json"}}}
        }
    }
    return {"requestBody": {"required": True} | body} | _wav()


def _wav() -> dict[str, Any]:
    wav = {"schema": {"type": "string", "format": "binary"}}
    listed = {"schema": {"type": "object", "properties": {"clips": {"type": "array", "items": {"type": "object"}}}}}
    return {
        "responses": {
            "200": {
                "description": "The sound; in parts, with stream.",
                "content": {"audio/wav": wav, "application/json": listed},
            }
        }
    }


def _inline(kind: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema as one object, without references to other places of the document."""
    schema = kind.model_json_schema()
    schema.pop("$defs", None)
    return schema
