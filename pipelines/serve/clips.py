"""What the dispatcher and the replicas exchange: a clip to make, and the clip made; plain data, no classes of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClipJob:
    """One clip to generate.

    Attributes:
        request_id: of the request, for logs.
        fields: a checked `GenerateRequest` without `clips`.
        method: of the replica.
    """

    request_id: str
    fields: dict[str, Any]
    method: str = "generate"


@dataclass(frozen=True)
class EditJob:
    """One sound to edit.

    Attributes:
        fields: a checked `EditRequest`.
        audio: the decoded upload, [channels, samples] float32 as bytes.
    """

    request_id: str
    fields: dict[str, Any]
    audio: bytes
    channels: int
    sample_rate_hz: int
    method: str = "edit"


@dataclass(frozen=True)
class MadeClip:
    """A clip as it leaves a replica.

    Attributes:
        wav: the whole file, with its settings inside; its beginning, if it is streamed.
        settings: what it was made with.
        model: name and id of the model that made it.
        batch: clips that were made together with it, itself included.
        waited_ms, took_ms: waiting for the batch, and making it.
        notes: what the caller should know: text that was cut, a clip that was turned down, a seam.
    """

    wav: bytes
    settings: dict[str, Any]
    seconds: float
    model: str
    model_id: str
    batch: int = 1
    waited_ms: float = 0.0
    took_ms: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OfferedModel:
    """One model that requests may name."""

    name: str
    source: str
    is_default: bool
    is_loaded: bool
    model_id: str
    kind: str = ""
    version: str = ""
    problem: str = ""
    """Why a newer version is not served yet."""
