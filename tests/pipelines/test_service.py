"""A real service on Ray Serve: clips, hostile requests, too many requests, clients that leave, promotion, a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
import soundfile

from tests.support.small_service import LoadableRegistry, open_loadable_registry, run_service

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow]
MAX_BATCH, MAX_QUEUED = 2, 4
ROOM = 2 * MAX_BATCH + MAX_QUEUED
PATIENCE_S = 240  # a replica that died is back after a minute on a busy machine


@dataclass(frozen=True)
class Running:
    url: str
    registry: LoadableRegistry
    log: Path

    def generate(self, **fields: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/generate", json={"prompt": "piano"} | fields, timeout=PATIENCE_S)

    def read_figure(self, name: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, before = tmp_path_factory.mktemp("service"), Path.cwd()
    os.chdir(folder)
    registry = open_loadable_registry(folder)
    registry.promote(registry.add(1))
    settings = {
        "model": "champion", "tracking": registry.tracking, "storage": registry.storage, "max_batch": MAX_BATCH,
        "max_queued": MAX_QUEUED, "follow_s": 0.3, "log_file": str(folder / "log.jsonl"),
        "limits": {"body_timeout_s": 2.0, "max_upload_mib": 1, "max_seconds": 20.0, "request_timeout_s": 200},
    }  # fmt: skip
    with run_service(**settings) as url:
        yield Running(url, registry, folder / "log.jsonl")
    os.chdir(before)


def read_wav(content: bytes) -> tuple[Any, int]:
    return soundfile.read(io.BytesIO(content), dtype="float32")


def wait_for(condition: Any, *, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not true within {patience_s} s"
        time.sleep(0.1)


def list_replicas() -> list[psutil.Process]:
    """The living processes of model replicas, children of this session's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica:presto:Model" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
    return found


def test_a_clip_is_a_wav_with_its_settings(service: Running):
    fields = {"prompt": "ピアノ in D minor", "steps": 2, "seconds": 1.0, "tempo_bpm": 90}
    answer = service.generate(**fields, seed=5)
    assert answer.status_code == 200, answer.text
    samples, rate_hz = read_wav(answer.content)
    assert len(samples) == rate_hz
    clip = json.loads(answer.headers["X-Presto-Clip"])
    assert clip["settings"]["prompt"] == "ピアノ in D minor"
    assert (clip["settings"]["key"], clip["settings"]["tempo_bpm"], clip["settings"]["seed"]) == ("D minor", 90.0, 5)
    assert clip["model"] == "presto-generator@champion"
    assert (
        service.generate(prompt="ピアノ in D minor", steps=2, seed=5, seconds=1.0, tempo_bpm=90).content
        == answer.content
    )
    assert (
        service.generate(prompt="ピアノ in D minor", steps=2, seed=6, seconds=1.0, tempo_bpm=90).content
        != answer.content
    )


def test_an_edit_keeps_what_is_outside_of_its_region_to_the_bit(service: Running):
    clip = service.generate(prompt="piano", steps=1, seconds=3.0).content
    settings = {"prompt": "drums", "operation": "repaint", "regions": [[1.0, 2.0]], "steps": 1}
    files: dict[str, Any] = {"audio": ("a.wav", clip), "settings": (None, json.dumps(settings))}
    answer = requests.post(f"{service.url}/v1/edit", files=files, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    before, after = (soundfile.read(io.BytesIO(wav), dtype="int16")[0] for wav in (clip, answer.content))
    kept = json.loads(answer.headers["X-Presto-Clip"])["notes"]["kept"]
    assert sum(stop - start for start, stop in kept) > 1.5
    for start, stop in kept:
        span = slice(round(start * 44100), round(stop * 44100))
        assert np.array_equal(before[span], after[span])
    assert not np.array_equal(before, after)
    for operation, change, seconds in (("vary", {"strength": 0.4}, 3.0), ("extend", {"seconds": 1.0}, 4.0)):
        settings = {"prompt": "drums", "operation": operation, "steps": 1} | change
        files["settings"] = (None, json.dumps(settings))
        answer = requests.post(f"{service.url}/v1/edit", files=files, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        assert len(read_wav(answer.content)[0]) == pytest.approx(seconds * 44100, abs=2)


def test_several_clips_come_as_json_each_of_its_own_seed(service: Running):
    answer = service.generate(clips=3, seed=4, steps=1, seconds=0.5).json()
    assert [clip["settings"]["seed"] for clip in answer["clips"]] == [4, 5, 6]
    assert len({clip["wav"] for clip in answer["clips"]}) == 3


def test_loops_and_sections_are_of_the_length_requested(service: Running):
    loop = service.generate(loop=True, seconds=2.0, steps=1)
    assert loop.status_code == 200, loop.text
    assert len(read_wav(loop.content)[0]) == 2 * 44100
    piece = service.generate(sections=[[2.0, "drums"]], seconds=4.0, steps=1)
    assert piece.status_code == 200, piece.text
    assert len(read_wav(piece.content)[0]) == 4 * 44100


PIECE: dict[str, Any] = {"sections": [[4.0, "drums"]], "seconds": 20.0, "steps": 1, "seed": 2}


def open_stream(service: Running, **fields: Any) -> requests.Response:
    return requests.post(
        f"{service.url}/v1/generate", json=PIECE | {"prompt": "piano", "stream": True} | fields, stream=True,
        timeout=PATIENCE_S,
    )  # fmt: skip


def test_a_streamed_piece_has_the_samples_of_the_one_sent_at_once(service: Running):
    whole = service.generate(**PIECE)
    assert whole.status_code == 200, whole.text
    answer = open_stream(service)
    assert answer.status_code == 200, answer.text
    about = [json.loads(each.headers["X-Presto-Clip"])["settings"] for each in (whole, answer)]
    assert about[0] == about[1]
    assert len(answer.content) == int(answer.headers["Content-Length"])
    assert np.array_equal(read_wav(answer.content)[0], read_wav(whole.content)[0])


def test_a_stream_that_cannot_be_made_is_an_error_instead(service: Running):
    assert open_stream(service, key="H flat").status_code == 422
    assert open_stream(service, model="none").status_code == 404
    as_json = requests.post(
        f"{service.url}/v1/generate", json=PIECE | {"prompt": "x", "stream": True}, timeout=PATIENCE_S,
        headers={"Accept": "application/json"},
    )  # fmt: skip
    assert (as_json.status_code, set(as_json.json()["error"])) == (422, {"what", "value", "fix"})


def test_a_stream_whose_client_leaves_is_not_worked_for(service: Running):
    before = service.read_figure("presto_clients_left_total")
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            f"{service.url}/v1/generate", json=PIECE | {"prompt": "x", "stream": True, "steps": 64}, timeout=0.3
        )
    wait_for(lambda: service.read_figure("presto_clients_left_total") == before + 1)
    wait_for(lambda: service.read_figure("presto_clips_accepted") == 0)
    assert service.generate(steps=1, seconds=0.2).status_code == 200


def test_models_health_figures_and_page_are_there(service: Running):
    models = requests.get(f"{service.url}/v1/models", timeout=PATIENCE_S).json()["models"]
    assert models[0]["name"] == "presto-generator@champion"
    assert models[0]["is_default"]
    assert {"presto-tiny-s", "presto-generator@candidate"} <= {model["name"] for model in models}
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/page/page.js"):
        assert requests.get(service.url + path, timeout=PATIENCE_S).status_code == 200, path
    page = requests.get(service.url, timeout=PATIENCE_S)
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text  # no request leaves the service
    assert service.read_figure("presto_clips_total") > 0


def test_hostile_requests_are_refused_and_the_service_goes_on(service: Running):
    url, json_type = f"{service.url}/v1/generate", {"Content-Type": "application/json"}
    cases: list[tuple[int, dict[str, Any]]] = [
        (400, {"data": "{", "headers": json_type}),
        (422, {"data": '{"prompt": "x", "tempo_bpm": NaN}', "headers": json_type}),
        (422, {"json": {"prompt": "x", "steps": 10**9}}),
        (422, {"json": {"prompt": "x", "model": "../../etc/passwd"}}),
        (404, {"json": {"prompt": "x", "model": "no-such-model"}}),
        (422, {"json": {"prompt": "x", "key": "H flat"}}),
        (413, {"data": b"x" * 200_000, "headers": json_type}),
        (415, {"data": "prompt=x"}),
        (403, {"json": {"prompt": "x"}, "headers": {"Origin": "https://evil.example"}}),
        (403, {"json": {"prompt": "x"}, "headers": {"Host": "evil.example"}}),
    ]
    for status, request in cases:
        answer = requests.post(url, timeout=PATIENCE_S, **request)
        assert answer.status_code == status, (request, answer.text)
        assert set(answer.json()["error"]) == {"what", "value", "fix"}
    edit = {"settings": (None, json.dumps({"prompt": "x", "operation": "vary"}))}
    for status, content in ((415, b"<html>"), (415, b"PK\x03\x04" + b"\0" * 100), (413, b"\0" * 2_000_000)):
        answer = requests.post(
            f"{service.url}/v1/edit", files=edit | {"audio": ("../../a.wav", content)}, timeout=PATIENCE_S
        )
        assert answer.status_code == status, answer.text
    for path in ("/page/../settings.py", "/page/%2e%2e%2fsettings.py", "/page/..%5csettings.py", "/nothing"):
        assert requests.get(service.url + path, timeout=PATIENCE_S).status_code == 404
    assert service.generate(steps=1, seconds=0.2).status_code == 200


def test_a_body_that_drips_in_is_given_up(service: Running):
    where = urlsplit(service.url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as line:
        head = b"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n"
        line.sendall(head + b'Content-Type: application/json\r\n\r\n{"prompt"')
        assert b" 408 " in line.recv(4096).partition(b"\r\n")[0]
    assert service.generate(steps=1, seconds=0.2).status_code == 200


def test_more_than_there_is_room_for_get_429_and_a_time_to_come_again(service: Running):
    with ThreadPoolExecutor(3 * ROOM) as pool:
        answers = list(pool.map(lambda seed: service.generate(seed=seed, steps=60, seconds=20), range(3 * ROOM)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert len(answers) - len(refused) >= ROOM
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in refused)
    # clips that waited together were made together
    batches = [json.loads(a.headers["X-Presto-Clip"])["batch"] for a in answers if a.status_code == 200]
    assert max(batches) == MAX_BATCH


def test_a_client_that_leaves_is_not_worked_for(service: Running):
    before = service.read_figure("presto_clients_left_total")
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            f"{service.url}/v1/generate", json={"prompt": "x", "steps": 64, "seconds": 20, "clips": 4}, timeout=0.3
        )
    wait_for(lambda: service.read_figure("presto_clients_left_total") == before + 1)
    wait_for(lambda: service.read_figure("presto_clips_accepted") == 0)
    assert service.generate(steps=1, seconds=0.2).status_code == 200


def test_the_log_is_json_without_prompts(service: Running):
    service.generate(prompt="a secret song", steps=1, seconds=0.2)
    lines = service.log.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries[-1]["asked"]["steps"] == 1
    assert entries[-1]["status"] == 200
    assert "secret" not in service.log.read_text()


class Load:
    """Clients that ask one clip after another until stopped."""

    def __init__(self, service: Running, clients: int = 2) -> None:
        self.answers: list[tuple[int, str]] = []
        self._service, self._end = service, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        while not self._end.is_set():
            answer = self._service.generate(seed=number, steps=2, seconds=0.5)
            about = answer.headers.get("X-Presto-Clip")
            self.answers.append((answer.status_code, json.loads(about)["model_id"] if about else answer.text))

    def has_model(self, model_id: str) -> bool:
        return bool(self.answers) and self.answers[-1][1] == model_id


def test_a_promotion_and_a_rollback_under_load_drop_no_request(service: Running):
    new = service.registry.add(2)
    with Load(service) as load:
        wait_for(lambda: load.has_model(f"{1:016x}"))
        service.registry.promote(new)
        wait_for(lambda: load.has_model(f"{2:016x}"))
        service.registry.promote(1)
        wait_for(lambda: load.has_model(f"{1:016x}"))
    assert {status for status, _ in load.answers} == {200}
    models = [model for _, model in load.answers]
    assert set(models) == {f"{1:016x}", f"{2:016x}"}


def test_a_champion_that_cannot_be_loaded_leaves_the_old_one(service: Running):
    service.registry.promote(service.registry.add(3, is_damaged=True))
    try:
        wait_for(lambda: "model refused" in service.log.read_text())
        assert service.generate(steps=1, seconds=0.2).status_code == 200
        models = requests.get(f"{service.url}/v1/models", timeout=PATIENCE_S).json()["models"]
        assert models[0]["problem"]
    finally:
        service.registry.promote(1)


def test_a_replica_killed_under_load_loses_no_accepted_request(service: Running):
    with Load(service) as load:
        wait_for(lambda: len(load.answers) > 3)
        (killed,) = list_replicas()
        killed.send_signal(signal.SIGKILL)
        done = len(load.answers)
        wait_for(lambda: len(load.answers) > done + 4)
    assert {status for status, _ in load.answers} == {200}, load.answers
    (now,) = list_replicas()
    assert now.pid != killed.pid


def test_a_replica_killed_while_it_sends_a_piece_breaks_no_stream(service: Running):
    whole = service.generate(**PIECE | {"steps": 64})
    assert whole.status_code == 200, whole.text
    before = service.read_figure("presto_retries_total")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(lambda: open_stream(service, steps=64).content)
        wait_for(lambda: service.read_figure("presto_clips_accepted") == 1)
        (killed,) = list_replicas()
        killed.send_signal(signal.SIGKILL)
        content = stream.result(PATIENCE_S)
    assert service.read_figure("presto_retries_total") > before
    assert np.array_equal(read_wav(content)[0], read_wav(whole.content)[0])
