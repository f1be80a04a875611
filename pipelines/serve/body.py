"""Bodies of requests: read within a size and a time, and split into their parts; sounds are known by their content."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pipelines.serve.refusal import refuse
from pipelines.serve.settings import Limits
from presto_core.audio.chunks import decode_blocks
from presto_core.audio.decoders import open_sound
from presto_core.audio.sound import AudioError

Audio = npt.NDArray[np.float32]
HIGHEST_RATE_HZ, MOST_CHANNELS = 96_000, 2  # of uploads; above, they are resampled and mixed


def check_content_type(request: Request, wanted: str) -> None:
    """Refuse a body of another type; a page of another site cannot send application/json without being asked for it."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != wanted:
        raise refuse(415, f"the body is {found or 'of no type'}", f"send it as {wanted}", value=found)


async def read_body(request: Request, *, most_bytes: int, timeout_s: float) -> bytes:
    """Return the body.

    Raises:
        RefusedError: 413 if it is longer, 408 if it takes longer to arrive.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most_bytes:
        raise _too_large(most_bytes, stated)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise _too_large(most_bytes, f"{len(body)} bytes and more")
    except TimeoutError:
        raise refuse(
            408, f"the body did not arrive within {timeout_s:g} s", "send it faster, or send less",
            value=f"{len(body)} bytes", headers={"Connection": "close"},
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise asyncio.CancelledError from None
    return bytes(body)


def _too_large(most_bytes: int, value: str) -> Exception:
    return refuse(413, "the body is too large", f"send at most {most_bytes} bytes", value=value)


async def read_form(request: Request, limits: Limits) -> tuple[bytes, bytes]:
    """Return the parts `audio` and `settings` of a multipart body; what a part's file is called does not matter.

    Raises:
        RefusedError: it is too large or too slow, is no such form, or a part is missing.
    """
    check_content_type(request, "multipart/form-data")
    most = limits.max_upload_mib * 2**20 + limits.max_json_bytes
    body = await read_body(request, most_bytes=most, timeout_s=limits.body_timeout_s)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=1, max_part_size=limits.max_json_bytes)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise refuse(
            400, f"the form cannot be read: {reason}", "send one file, audio, and one field, settings"
        ) from None
    audio, settings = form.get("audio"), form.get("settings")
    if not isinstance(audio, UploadFile):
        raise refuse(422, "audio is missing", "send the sound as a file in the part named audio", value="audio")
    if not isinstance(settings, str):
        raise refuse(
            422, "settings is missing", "send the request as JSON in the part named settings", value="settings"
        )
    return await audio.read(), settings.encode(errors="surrogatepass")


@dataclass(frozen=True)
class Upload:
    """A decoded sound: audio [channels, samples] at its own rate, so that what is kept of it stays as it was."""

    audio: Audio
    sample_rate_hz: int


def decode_upload(content: bytes, *, most_seconds: float) -> Upload:
    """Return the sound in an upload; stops as soon as it is longer than allowed.

    Raises:
        RefusedError: 415 if it is no sound by its content, 413 if it is too long, 422 if it holds nothing.
    """
    try:
        with open_sound(io.BytesIO(content)) as sound:
            rate_hz, channels = min(sound.sample_rate_hz, HIGHEST_RATE_HZ), min(sound.channels, MOST_CHANNELS)
        audio = _decode(content, rate_hz, channels, most_samples=int(most_seconds * rate_hz))
    except (AudioError, MemoryError, ValueError) as error:
        raise refuse(
            415, f"audio is {str(error) or 'too large'}", "send a WAV, FLAC, OGG or MP3 file", value=repr(content[:12])
        ) from None
    if audio is None:
        raise refuse(413, f"the sound is longer than {most_seconds:g} s", "send a shorter part of it")
    if not audio.size:
        raise refuse(422, "audio is empty", "send a file with samples")
    return Upload(audio, rate_hz)


def _decode(content: bytes, rate_hz: int, channels: int, *, most_samples: int) -> Audio | None:
    """Return [channels, samples], or None if it is longer."""
    blocks, length = [np.zeros((0, channels), np.float32)], 0
    for block in decode_blocks(io.BytesIO(content), sample_rate_hz=rate_hz, channels=channels):
        length += len(block)
        if length > most_samples:
            return None
        blocks.append(block)
    return np.ascontiguousarray(np.concatenate(blocks).T, np.float32)
