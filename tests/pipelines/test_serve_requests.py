"""What the service refuses before anything is computed: by field, size, type, content, token and origin."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.requests import Request

from pipelines.serve.access_log import AccessLog
from pipelines.serve.body import decode_upload, read_body, read_form
from pipelines.serve.guard import Service, Visit
from pipelines.serve.metrics import ServiceMetrics
from pipelines.serve.refusal import RefusedError
from pipelines.serve.requests import EditRequest, GenerateRequest, check_limits, parse_request
from pipelines.serve.settings import Limits, ServeSettings, check_access, read_token
from presto_core.errors import UserError

LIMITS = Limits(body_timeout_s=0.3, max_upload_mib=1, max_upload_seconds=2.0)
TOKEN = "a-token-of-many-letters"


def catch_refusal(function: Any, *args: Any, **kwargs: Any) -> Any:
    is_async = asyncio.iscoroutinefunction(function)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(function(*args, **kwargs)) if is_async else function(*args, **kwargs)
    refusal = caught.value.refusal
    assert refusal.what
    assert refusal.fix
    return refusal


def ask(body: str, kind: Any = GenerateRequest) -> Any:
    request = parse_request(kind, body)
    check_limits(request, LIMITS)
    return request


# --- fields


def test_a_good_request_keeps_its_fields():
    request = ask('{"prompt": "ピアノ, 90 bpm", "steps": 8, "seed": 7, "seconds": 2.5, "key": "Dm", "clips": 2}')
    assert (request.prompt, request.steps, request.seed, request.seconds) == ("ピアノ, 90 bpm", 8, 7, 2.5)
    assert request.schedule is None
    levels = ask('{"prompt": "x", "sigma_min": 0.01, "sigma_max": 40, "rho": 5}').schedule
    assert (levels.sigma_min, levels.sigma_max, levels.rho) == (0.01, 40.0, 5.0)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ("[", 400, "JSON"),
        ("", 400, "JSON"),
        ("[]", 422, "request"),
        ("null", 422, "request"),
        ("{}", 422, "prompt"),
        ('{"prompt": 3}', 422, "prompt"),
        ('{"prompt": " "}', 422, "prompt"),
        ('{"prompt": "\\ud800"}', 400, "JSON"),
        ('{"prompt": "x", "tempo_bpm": NaN}', 422, "tempo_bpm"),
        ('{"prompt": "x", "tempo_bpm": Infinity}', 422, "tempo_bpm"),
        ('{"prompt": "x", "tempo_bpm": 1e400}', 422, "tempo_bpm"),
        ('{"prompt": "x", "guidance_scale": NaN}', 422, "guidance_scale"),
        ('{"prompt": "x", "guidance_rescale": 0.7}', 422, "guidance_rescale"),
        ('{"prompt": "x", "guidance_scale": 2, "guidance_interval": [5, 0.3]}', 422, "guidance_interval"),
        ('{"prompt": "x", "guidance_scale": 2, "guidance_interval": [0.3, Infinity]}', 422, "guidance_interval"),
        ('{"prompt": "x", "seconds": 1e308}', 422, "seconds"),
        ('{"prompt": "x", "seconds": -1}', 422, "seconds"),
        ('{"prompt": "x", "steps": 1000000000}', 422, "steps"),
        ('{"prompt": "x", "steps": 4.5}', 422, "steps"),
        ('{"prompt": "x", "steps": true}', 422, "steps"),
        ('{"prompt": "x", "steps": "4"}', 422, "steps"),
        ('{"prompt": "x", "seed": 9223372036854775808}', 422, "seed"),
        ('{"prompt": "x", "seed": 9223372036854775807, "clips": 2}', 422, "seed"),
        ('{"prompt": "x", "seed": ' + "9" * 5000 + "}", 400, "JSON"),
        ('{"prompt": "x", "clips": 9}', 422, "clips"),
        ('{"prompt": "x", "model": "../../etc/passwd"}', 422, "model"),
        ('{"prompt": "x", "model": "s3://bucket/model"}', 422, "model"),
        ('{"prompt": "x", "model": "/etc"}', 422, "model"),
        ('{"prompt": "x", "model": "a\\u0000b"}', 422, "model"),
        ('{"prompt": "x", "model": "presto\\n"}', 422, "model"),
        ('{"prompt": "x", "temperature": 1}', 422, "temperature"),
        ('{"prompt": "x", "sigma_min": 1}', 422, "sigma_min"),
        ('{"prompt": "x", "sigma_min": 5, "sigma_max": 1, "rho": 7}', 422, "sigma_min"),
        ('{"prompt": "x", "sigma_max": NaN, "sigma_min": 0.1, "rho": 7}', 422, "sigma_max"),
        (json.dumps({"prompt": "x" * 2001}), 422, "prompt"),
        ('{"prompt": "x", "sections": [[1, "y"]]}', 422, "sections"),
        ('{"prompt": "x", "seconds": 2, "sections": [[2, "y"]]}', 422, "sections"),
        ('{"prompt": "x", "seconds": 2, "sections": [[NaN, "y"]]}', 422, "sections"),
        ('{"prompt": "x", "seconds": 2, "sections": [[1, "y"], [1, "z"]]}', 422, "sections"),
        (json.dumps({"prompt": "x", "seconds": 2, "sections": [[1, "y" * 2001]]}), 422, "section"),
        ("[" * 30_000, 400, "JSON"),
        ('{"prompt": ' + '{"a":' * 3000 + "1" + "}" * 3000 + "}", 400, "JSON"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named(body: str, status: int, named: str):
    refusal = catch_refusal(ask, body)
    assert refusal.status == status
    assert named in refusal.what
    assert len(refusal.value) < 200
    json.dumps(refusal.to_json(), allow_nan=False).encode()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"operation": "delete"}, "operation"),
        ({"operation": "repaint"}, "regions"),
        ({"operation": "repaint", "regions": [[2, 1]]}, "region"),
        ({"operation": "repaint", "regions": [[-1, 1]]}, "region"),
        ({"operation": "repaint", "regions": [[0, 1]] * 17}, "regions"),
        ({"operation": "vary", "regions": [[0, 1]]}, "regions"),
        ({"operation": "vary", "strength": 1.5}, "strength"),
        ({"operation": "extend"}, "seconds"),
        ({"operation": "extend", "seconds": 61}, "seconds"),
        ({"operation": "extend", "seconds": 1, "at": "middle"}, "at"),
    ],
)
def test_an_edit_that_does_not_fit_is_named(fields: dict[str, Any], named: str):
    refusal = catch_refusal(ask, json.dumps({"prompt": "x"} | fields), EditRequest)
    assert refusal.status == 422
    assert named in refusal.what


# --- bodies


def make_request(parts: list[bytes], headers: dict[str, str] | None = None, *, pause_s: float = 0.0) -> Request:
    queue = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    queue.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return queue.pop(0)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def test_a_body_is_read_up_to_its_limit():
    assert asyncio.run(read_body(make_request([b"ab", b"cd"]), most_bytes=4, timeout_s=1)) == b"abcd"
    assert catch_refusal(read_body, make_request([b"ab", b"cde"]), most_bytes=4, timeout_s=1).status == 413
    stated = make_request([], {"Content-Length": "5"})
    assert catch_refusal(read_body, stated, most_bytes=4, timeout_s=1).status == 413


def test_a_body_that_drips_is_given_up():
    slow = make_request([b"a"] * 50, pause_s=0.05)
    assert catch_refusal(read_body, slow, most_bytes=100, timeout_s=0.3).status == 408


def make_wav(seconds: float = 0.5, *, rate_hz: int = 22050) -> bytes:
    stream = io.BytesIO()
    samples = 0.4 * np.sin(np.arange(int(seconds * rate_hz)) / 10)
    soundfile.write(stream, samples, rate_hz, format="WAV")
    return stream.getvalue()


def make_form(audio: bytes, settings: str, *, name: str = "../../etc/passwd", fields: str = "settings") -> Request:
    boundary = "x9x"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="{name}"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    ).encode() + audio
    body += f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="{fields}"\r\n\r\n{settings}\r\n'.encode()
    body += f"--{boundary}--\r\n".encode()
    return make_request([body], {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def test_a_form_gives_its_two_parts_whatever_the_file_is_called():
    wav = make_wav()
    assert asyncio.run(read_form(make_form(wav, "{}"), LIMITS)) == (wav, b"{}")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda: make_form(b"x" * (2**20 + 200_000), "{}"), 413),
        (lambda: make_form(b"x", "{}", fields="other"), 422),
        (lambda: make_form(b"x", "y" * 70_000), 400),
        (lambda: make_request([b"audio"], {"Content-Type": "multipart/form-data"}), 400),
        (lambda: make_request([b"--a\r\nbroken"], {"Content-Type": "multipart/form-data; boundary=a"}), (400, 422)),
        (lambda: make_request([b"{}"], {"Content-Type": "application/json"}), 415),
    ],
)
def test_a_form_that_is_none_is_refused(request_: Any, status: int | tuple[int, ...]):
    expected = status if isinstance(status, tuple) else (status,)
    assert catch_refusal(read_form, request_(), LIMITS).status in expected


def make_zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", b"\0" * 10_000_000)
    return stream.getvalue()


def make_long_flac() -> bytes:
    """An hour of silence in some kilobytes."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    return stream.getvalue()


def make_nan_wav() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(8000, np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 415),
        (b"<!doctype html><script>alert(1)</script>", 415),
        (make_zip_bomb(), 415),
        (b"\x1f\x8b" + b"\0" * 100, 415),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", 415),
        (make_long_flac(), 413),
        (make_wav(2.5), 413),
        (make_nan_wav(), 415),
    ],
    ids=["nothing", "html", "zip bomb", "gzip", "wav of 4 GiB", "an hour of flac", "too long", "NaN"],
)
def test_an_upload_is_known_by_its_content(content: bytes, status: int):
    refusal = catch_refusal(decode_upload, content, most_seconds=2.0)
    assert refusal.status == status


def test_an_upload_keeps_its_rate_and_its_samples():
    content = make_wav(0.5)
    upload = decode_upload(content, most_seconds=2.0)
    assert upload.sample_rate_hz == 22050
    assert np.array_equal(upload.audio[0], soundfile.read(io.BytesIO(content), dtype="float32")[0])


@pytest.mark.parametrize(("rate_hz", "channels"), [(192_000, 1), (44100, 6), (1000, 1)])
def test_an_upload_of_unusual_form_is_brought_to_a_usual_one(rate_hz: int, channels: int):
    stream = io.BytesIO()
    soundfile.write(stream, np.full((rate_hz, channels), 0.25), rate_hz, format="WAV")
    upload = decode_upload(stream.getvalue(), most_seconds=2.0)
    assert upload.sample_rate_hz == min(rate_hz, 96_000)
    assert upload.audio.shape == (min(channels, 2), upload.sample_rate_hz)


# --- who may come in


def make_service(token: str = "", **settings: Any) -> Service:
    log = AccessLog(logging.NullHandler(), with_prompts=False)
    return Service(ServeSettings(**settings), token, log, ServiceMetrics())


def make_scope(path: str = "/v1/models", method: str = "GET", **headers: str) -> dict[str, Any]:
    headers = {"host": "127.0.0.1:8000"} | headers
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw}


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"])
def test_without_the_token_nobody_gets_in(given: str):
    service = make_service(TOKEN)
    refusal = catch_refusal(service.check_entry, make_scope(authorization=given))
    assert refusal.status == 401
    assert TOKEN not in json.dumps(refusal.to_json())
    service.check_entry(make_scope(authorization=f"Bearer {TOKEN}"))
    for path in ("/", "/healthz", "/readyz", "/page/page.js"):
        service.check_entry(make_scope(path))
    assert catch_refusal(service.check_entry, make_scope("/metrics")).status == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8000"])
def test_a_name_that_was_pointed_at_this_machine_is_refused(host: str):
    assert catch_refusal(make_service().check_entry, make_scope(host=host)).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_names_of_this_machine_are_let_in(host: str):
    make_service().check_entry(make_scope(host=host))


def test_the_page_of_another_site_cannot_post():
    service = make_service()
    assert catch_refusal(service.check_entry, make_scope(method="POST", origin="https://evil.example")).status == 403
    assert catch_refusal(service.check_entry, make_scope(method="POST", origin="null")).status == 403
    service.check_entry(make_scope(method="POST", origin="http://127.0.0.1:8000"))


def test_other_machines_need_a_token(tmp_path: Path):
    file = tmp_path / "token"
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""):
        with pytest.raises(UserError):
            check_access(ServeSettings(host=host))
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        check_access(ServeSettings(host=host))
    for text, mode in (("short", 0o600), ("two words in a token", 0o600), (TOKEN, 0o644), ("é" * 20, 0o600)):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(UserError):
            check_access(ServeSettings(host="0.0.0.0", token_file=str(file)))
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    check_access(ServeSettings(host="0.0.0.0", token_file=str(file)))
    assert read_token(str(file)) == TOKEN
    with pytest.raises(UserError):
        read_token(str(tmp_path / "none"))


# --- the log


def test_no_text_of_a_request_is_among_the_fields_of_the_log():
    body = '{"prompt": "w1", "negative_prompt": "w2", "guidance_scale": 3, "seconds": 9, "sections": [[4, "w3"]]}'
    visit = Visit({"type": "http"}, None, make_service())  # type: ignore[arg-type]  # it sends nothing
    visit.note_request(parse_request(GenerateRequest, body))
    assert visit.notes.pop("prompt") == "w1"  # which the log leaves out
    assert visit.notes == {"asked": {"guidance_scale": 3.0, "seconds": 9.0}}


def test_the_log_has_prompts_only_if_wanted(tmp_path: Path):
    for with_prompts in (False, True):
        file = tmp_path / f"{with_prompts}.jsonl"
        log = AccessLog(logging.FileHandler(file), with_prompts=with_prompts)
        log.write(event="request", prompt="a secret\nsong", status=200)
        (line,) = file.read_text().splitlines()
        entry = json.loads(line)
        assert entry["status"] == 200
        assert ("prompt" in entry) == with_prompts
        assert ("secret" in line) == with_prompts
