"""How batches form: a lone clip waits a moment, clips that wait are made together, and who left is left out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.serve.batcher import Answer, Batcher, Ticket
from pipelines.serve.clips import ClipJob
from pipelines.serve.refusal import Refusal


class Maker:
    """Answers with the names of a batch; waits for `go` before it does."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, tickets: list[Ticket]) -> list[Answer]:
        names = [ticket.job.request_id for ticket in tickets]
        self.batches.append(names)
        assert self.go.wait(10)
        if "bad" in names:
            raise ValueError("bad")
        return [Refusal(200, name, "") for name in names]


def submit(batcher: Batcher, name: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(batcher.submit(Ticket(ClipJob(name, {}))))


def run(scenario: Callable[[Batcher, Maker], object], *, max_batch: int = 3, max_wait_s: float = 0.02) -> Maker:
    maker = Maker()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(maker, executor, max_batch=max_batch, max_wait_s=max_wait_s)
            try:
                await asyncio.wait_for(scenario(batcher, maker), 10)  # type: ignore[arg-type]
            finally:
                maker.go.set()

    asyncio.run(main())
    return maker


async def wait_for_batches(maker: Maker, count: int) -> None:
    while len(maker.batches) < count:
        await asyncio.sleep(0.005)


def test_what_waits_while_a_batch_is_at_work_is_one_batch():
    async def scenario(batcher: Batcher, maker: Maker) -> None:
        first = submit(batcher, "a")
        await wait_for_batches(maker, 1)
        # far apart, compared with the longest wait
        later = []
        for name in "bcde":
            later.append(submit(batcher, name))
            await asyncio.sleep(0.05)
        maker.go.set()
        answers = await asyncio.gather(first, *later)
        assert [answer.what for answer in answers if isinstance(answer, Refusal)] == list("abcde")

    assert run(scenario).batches == [["a"], ["b", "c", "d"], ["e"]]


def test_a_full_batch_does_not_wait():
    async def scenario(batcher: Batcher, maker: Maker) -> None:
        maker.go.set()
        await asyncio.gather(*(submit(batcher, name) for name in "abc"))

    assert run(scenario, max_wait_s=3600).batches == [["a", "b", "c"]]


def test_a_lone_clip_waits_no_longer_than_agreed():
    async def scenario(batcher: Batcher, maker: Maker) -> None:
        maker.go.set()
        started = asyncio.get_running_loop().time()
        await submit(batcher, "a")
        assert 0.05 <= asyncio.get_running_loop().time() - started < 5

    assert run(scenario, max_wait_s=0.05).batches == [["a"]]


def test_who_left_is_left_out_and_the_others_are_served():
    async def scenario(batcher: Batcher, maker: Maker) -> None:
        first = submit(batcher, "a")
        await wait_for_batches(maker, 1)
        left, stays = submit(batcher, "b"), submit(batcher, "c")
        await asyncio.sleep(0.02)
        left.cancel()
        first.cancel()  # at work already: its answer is dropped
        await asyncio.sleep(0.02)
        maker.go.set()
        assert isinstance(await stays, Refusal)

    assert run(scenario).batches == [["a"], ["c"]]


def test_an_error_ends_its_batch_alone():
    async def scenario(batcher: Batcher, maker: Maker) -> None:
        maker.go.set()
        with pytest.raises(ValueError, match="bad"):
            await submit(batcher, "bad")
        assert isinstance(await submit(batcher, "good"), Refusal)

    assert run(scenario).batches == [["bad"], ["good"]]
