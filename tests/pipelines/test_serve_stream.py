"""Pieces that are sent while they are decoded: in one process, with a replica of the service and no Ray around it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.inference.generator import Generator
from pipelines.serve.clips import ClipJob, EditJob, MadeClip
from pipelines.serve.part_stream import iter_from_thread
from pipelines.serve.refusal import Refusal, RefusedError
from pipelines.serve.replica import ModelReplica
from pipelines.serve.requests import GenerateRequest, parse_request
from pipelines.serve.sent_piece import SentPiece
from pipelines.serve.settings import ServeSettings
from presto_core.config.sections import TrackingConfig

HEADER = 8  # bytes of the name and length of the samples in a WAV
FIELDS = {"prompt": "piano", "seconds": 11.0, "steps": 1, "seed": 4, "sections": [[6.0, "drums"]]}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("replica")
    no_registry = TrackingConfig(uri=f"sqlite:///{folder / 'none.db'}")
    settings = ServeSettings(model="presto-tiny-s", tracking=no_registry, log_file=str(folder / "log.jsonl"))
    made: Any = ModelReplica.func_or_class(settings)  # type: ignore[attr-defined]  # what the decorator wrapped
    yield made
    made._loaded_models.close()


async def read(replica: Any, **fields: Any) -> list[Any]:
    job = ClipJob("a", FIELDS | {"stream": True} | fields, "stream_piece")
    return [part async for part in replica.stream_piece(job)]


def test_a_streamed_piece_has_the_samples_of_the_one_sent_at_once(replica: Any):
    async def ask() -> tuple[list[Any], Any]:
        return await read(replica), await replica.make_piece(ClipJob("b", FIELDS, "make_piece"))

    (head, *parts), whole = asyncio.run(ask())
    assert isinstance(head, MadeClip)
    assert head.settings == whole.settings
    assert len(parts) > 1
    samples = b"".join(parts)
    assert len(samples) == 11 * 44100 * 2
    assert samples in whole.wav
    assert len(head.wav) + len(samples) == int.from_bytes(head.wav[4:8], "little") + 8
    assert head.wav[-HEADER:-4] == b"data"


@pytest.mark.parametrize(
    ("fields", "status"), [({"model": "none"}, 404), ({"key": "H flat"}, 422), ({"seconds": 1e6}, 422)]
)
def test_what_cannot_be_made_is_a_refusal_before_any_sound(replica: Any, fields: dict[str, Any], status: int):
    (answer,) = asyncio.run(read(replica, **fields))
    assert isinstance(answer, Refusal)
    assert answer.status == status


def test_who_stops_reading_ends_the_work(replica: Any):
    async def read_the_beginning() -> float:
        job = ClipJob("a", FIELDS | {"stream": True, "seconds": 600.0}, "stream_piece")
        async with aclosing(replica.stream_piece(job)) as parts:
            assert isinstance(await anext(parts), MadeClip)
            assert isinstance(await anext(parts), bytes)
        started = time.monotonic()
        (head, *_rest) = await read(replica, seconds=7.0)  # waits for the one thread that computes
        assert isinstance(head, MadeClip)
        return time.monotonic() - started

    # ten minutes of sound take a minute or so
    assert asyncio.run(read_the_beginning()) < 15


def make_edit(seconds: float) -> EditJob:
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 44100)).astype(np.float32)
    fields = {"prompt": "drums", "operation": "extend", "seconds": seconds, "steps": 64}
    return EditJob("a", fields, audio.tobytes(), 1, 44100)


@pytest.mark.parametrize(
    "begin",
    [
        lambda replica: replica.edit(make_edit(60.0)),
        lambda replica: replica.make_piece(ClipJob("a", FIELDS | {"steps": 64, "seconds": 60.0}, "make_piece")),
        lambda replica: replica.make_piece(
            ClipJob("a", {"prompt": "x", "loop": True, "steps": 64, "seconds": 60.0}, "make_piece")
        ),
        lambda replica: read(replica, steps=64, seconds=60.0),
    ],
    ids=["edit", "piece", "loop", "stream"],
)
def test_work_for_a_client_that_left_stops_at_the_next_step(
    replica: Any, begin: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
):
    steps, begun = [0], threading.Event()

    async def leave() -> None:
        work = asyncio.create_task(begin(replica))
        assert await asyncio.to_thread(begun.wait, 60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.get_running_loop().run_in_executor(replica._compute, lambda: None)  # once the thread is free

    _name, generator = replica._loaded_models.find("")
    count_steps(generator, steps, begun, monkeypatch)
    asyncio.run(leave())
    # 64 steps of two batches of windows and more were asked for
    assert 3 <= steps[0] < 30


def count_steps(generator: Generator, steps: list[int], begun: threading.Event, patch: pytest.MonkeyPatch) -> None:
    """Count evaluations of the network; `begun` is set at the third."""
    forward = generator.model.network.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            begun.set()
            time.sleep(0.2)  # for the client to leave
        return forward(*args, **kwargs)

    patch.setattr(generator.model.network, "forward", count)


@pytest.mark.parametrize(
    "fields", [{"loop": True, "seconds": 8}, {"clips": 2, "seconds": 8}, {}, {"seconds": 8, "stream": "yes"}]
)
def test_a_stream_of_what_is_made_as_a_whole_is_refused(fields: dict[str, Any]):
    with pytest.raises(RefusedError) as caught:
        parse_request(GenerateRequest, json.dumps({"prompt": "x", "stream": True} | fields))
    assert caught.value.refusal.status == 422
    assert "stream" in caught.value.refusal.what


# --- a replica that dies


def make_head(seed: int = 0) -> MadeClip:
    return MadeClip(b"head", {"seed": seed}, 1.0, "m", "0" * 16)


@pytest.mark.parametrize("lost_after", range(6))
@pytest.mark.parametrize("sizes", [(1, 2, 4, 8), (15,), (5, 5, 5)])
def test_another_replica_goes_on_where_one_was_lost(sizes: tuple[int, ...], lost_after: int):
    content = bytes(range(15))
    piece, sent = SentPiece(), list[Any]()
    cuts = np.cumsum((0, *sizes))
    first: list[Any] = [make_head(), *(content[i:j] for i, j in zip([0, 2, 3, 9], [2, 3, 9, 15]))]
    second: list[Any] = [make_head(), *(content[i:j] for i, j in zip(cuts, cuts[1:]))]
    for parts in (first[:lost_after], second):
        piece.start_again()
        sent += [missing for part in parts if (missing := piece.take(part))]
    assert sent[0] == make_head()
    assert b"".join(sent[1:]) == content


def test_another_piece_is_not_the_rest_of_one():
    piece = SentPiece()
    piece.take(make_head(seed=0))
    piece.start_again()
    with pytest.raises(RefusedError) as caught:
        piece.take(make_head(seed=1))
    assert caught.value.refusal.status == 503


# --- from a thread to the event loop


def test_parts_are_there_before_the_thread_is_done_and_its_error_comes_after_them():
    go, left = threading.Event(), threading.Event()

    def make() -> Iterator[int]:
        yield 1
        assert go.wait(10)
        yield 2
        raise ValueError("bad")

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as executor:
            parts = iter_from_thread(executor, make, leave=left.set)
            assert await anext(parts) == 1
            go.set()
            assert await anext(parts) == 2
            with pytest.raises(ValueError, match="bad"):
                await anext(parts)
        assert left.is_set()

    asyncio.run(scenario())


def test_the_log_of_a_replica_is_a_file(replica: Any):
    assert "model loaded" in Path(replica._settings.log_file).read_text()
