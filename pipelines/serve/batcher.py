"""Gathers what waits while a batch is at work into the next one; an empty service waits a moment for company.

Ray's `serve.batch` closes a batch when its time is over, whether the one before is done or not: under load, that makes
many small batches that wait for each other. Here a batch is closed when it can start.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from pipelines.serve.clips import ClipJob, EditJob, MadeClip
from pipelines.serve.refusal import Refusal

Answer = MadeClip | Refusal


@dataclass
class Ticket:
    """A clip that somebody waits for, until `is_left`."""

    job: ClipJob | EditJob
    requested_at: float = field(default_factory=time.perf_counter)
    is_left: bool = False

    def leave(self) -> None:
        self.is_left = True

    @property
    def age_ms(self) -> float:
        return (time.perf_counter() - self.requested_at) * 1e3


class Batcher:
    """Lives in one event loop; computes in an executor, one batch at a time.

    Args:
        make: tickets -> an answer each, in order.
        max_wait_s: longest wait of a batch's first ticket for others, while nothing is at work.
    """

    def __init__(
        self, make: Callable[[list[Ticket]], list[Answer]], executor: Executor, *, max_batch: int, max_wait_s: float
    ) -> None:
        self._make, self._executor = make, executor
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._waiting: deque[tuple[Ticket, asyncio.Future[Answer]]] = deque()
        self._arrival = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def submit(self, ticket: Ticket) -> Answer:
        """Return the answer to a ticket; cancelled, it is left out of its batch, or no longer waited for."""
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, future))
        self._arrival.set()
        try:
            return await future
        except asyncio.CancelledError:
            ticket.leave()
            raise

    async def _run(self) -> None:
        while True:
            await self._wait_for_company()
            if batch := self._take_batch():
                await self._make_batch(batch)

    async def _wait_for_company(self) -> None:
        """Return when a batch is full, or its first ticket has waited long enough: since it came, not since now."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        while len(self._waiting) < self._max_batch:
            left_s = self._max_wait_s - self._waiting[0][0].age_ms / 1e3
            if left_s <= 0:
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left_s)
            except TimeoutError:
                return

    def _take_batch(self) -> list[tuple[Ticket, asyncio.Future[Answer]]]:
        batch: list[tuple[Ticket, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._max_batch:
            ticket, future = self._waiting.popleft()
            if not ticket.is_left:
                batch.append((ticket, future))
        return batch

    async def _make_batch(self, batch: list[tuple[Ticket, asyncio.Future[Answer]]]) -> None:
        tickets = [ticket for ticket, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._executor, self._make, tickets)
        except Exception as error:  # of one batch; the next one goes on
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers):
            if not future.done():
                future.set_result(answer)
