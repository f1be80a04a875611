"""Reads an iterator that computes in a thread from an event loop: each part is there as soon as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

Part = TypeVar("Part")


async def iter_from_thread(
    executor: Executor, make: Callable[[], Iterator[Part]], *, leave: Callable[[], None]
) -> AsyncGenerator[Part]:
    """Yield the parts; the thread does not wait until they are read.

    Args:
        leave: called when nobody reads on, so that the iterator can stop.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[Part | None] = asyncio.Queue()  # None is the end

    def run() -> None:
        try:
            for part in make():
                loop.call_soon_threadsafe(ready.put_nowait, part)
        finally:
            loop.call_soon_threadsafe(ready.put_nowait, None)

    work = loop.run_in_executor(executor, run)
    try:
        while (part := await ready.get()) is not None:
            yield part
        await work  # its error, if it had one
    finally:
        leave()
