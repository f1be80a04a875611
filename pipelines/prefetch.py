"""An iterator that works ahead in a thread of its own, so that whoever asks for the next item seldom waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_S = 0.1  # how often a full queue looks whether anyone still wants its items


def ahead(make: Callable[[], Iterator[T]], *, depth: int) -> Iterator[T]:
    """Items of `make()`, up to `depth` of them made before they are asked for, in order.

    What the iterator raises is raised here, at the item it belongs to. Closing this generator ends the thread.
    """
    items: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(found: bool, item: T | BaseException | None) -> None:
        while not closed.is_set():
            try:
                items.put((found, item), timeout=_LOOK_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in make():
                put(True, item)
                if closed.is_set():
                    return
            put(False, None)
        except BaseException as error:  # whatever it is, it belongs to the one who asks
            put(False, error)

    threading.Thread(target=work, daemon=True, name="prefetch").start()
    try:
        while True:
            found, item = items.get()
            if isinstance(item, BaseException) and not found:
                raise item
            if not found:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
