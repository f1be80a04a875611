"""What glibc's malloc does with freed memory. Other C libraries and systems are left as they are."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make malloc reuse large blocks: a block returned to the system costs a page fault per 4 KiB when reallocated."""
    _set_thresholds(2**28)


def return_freed_memory() -> None:
    """Make malloc return every block of 1 MiB or more to the system when it is freed.

    By default, up to 32 MiB come from the heap, where activations of a large network leave gaps that later ones do not
    fit: a process then keeps several times the memory of its live tensors.
    """
    _set_thresholds(2**20)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_thresholds(size: int) -> None:
    with suppress(OSError, AttributeError):
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, size)
