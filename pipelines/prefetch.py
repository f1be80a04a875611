"""An iterator that works ahead in a thread of its own, so that whoever asks for the next item seldom waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_LOOK_S = 0.1  # how often a full queue looks whether anyone still wants its items
_PATIENCE_S = 10.0  # that a closed iterator is given to finish the item it makes


def ahead(make: Callable[[], Generator[T, None, None]], *, depth: int) -> Generator[T, None, None]:
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
        made = make()
        try:
            for item in made:
                put(True, item)
                if closed.is_set():
                    break
            put(False, None)
        except BaseException as error:  # whatever it is, it belongs to the one who asks
            put(False, error)
        finally:
            made.close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
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
        thread.join(_PATIENCE_S)
