"""An open sound file, whichever decoder reads it, and why a file cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from presto_core.errors import UserError

Waveform = npt.NDArray[np.float32]

UNKNOWN_LENGTH = 2**62  # libsndfile returns 2^63 - 1 for a FLAC that does not state its length
DAMAGED = "damaged or truncated"


class AudioError(UserError):
    """A file cannot be used as music; the message gives the reason and follows the file's name."""


@dataclass(frozen=True)
class Sound:
    """An open sound file.

    Attributes:
        iter_blocks: approximate frames per block -> blocks [n, channels] float32 as stored; call it once.
    """

    sample_rate_hz: int
    channels: int
    iter_blocks: Callable[[int], Iterator[Waveform]]


def truncate(declared_length: int, blocks: Iterator[Waveform], *, slack: int) -> Iterator[Waveform]:
    """Yield the first `declared_length` samples; raise AudioError if more than `slack` of them are missing."""
    read = 0
    for block in check_length(declared_length, blocks, slack=slack):
        if read < declared_length:
            yield block[: declared_length - read]
        read += len(block)


def check_length(declared_length: int, blocks: Iterator[Waveform], *, slack: int) -> Iterator[Waveform]:
    """Yield the blocks; raise AudioError after them if more than `slack` of `declared_length` samples are missing."""
    read = 0
    for block in blocks:
        yield block
        read += len(block)
    if read + slack < declared_length < UNKNOWN_LENGTH:
        raise AudioError(f"is truncated or damaged: {read} of {declared_length} samples")


def describe_unreadable(detail: str) -> str:
    return f"not readable as audio: {' '.join(detail.removeprefix('Error : ').split())}"
