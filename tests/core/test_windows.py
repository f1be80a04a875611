"""Cutting samples into windows: slices of the whole signal, independent of the block sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_core.audio.chunks import AudioError, Tail, iter_windows

TAILS: tuple[Tail, ...] = ("drop", "pad", "shift")


def split_blocks(samples: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """Split [channels, N] into blocks [n, channels] of these sizes, repeatedly."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= samples.shape[1]:
            return
        yield samples[:, at : at + size].T
        at += size


def cut_slowly(samples: np.ndarray, *, length: int, step: int, tail: Tail) -> list[tuple[int, np.ndarray]]:
    """Reference: windows of the whole array [channels, N], and the literal rule for the tail."""
    count = samples.shape[1]
    found = [(at, samples[:, at : at + length]) for at in range(0, count, step) if at + length <= count]
    covered = max((at + length for at, _ in found), default=0)
    if covered < count and tail == "shift":
        found.append((count - length, samples[:, count - length :]))
    if covered < count and tail == "pad":
        at = next(at for at in range(0, count, step) if at + length > covered)
        found.append((at, np.pad(samples[:, at:], ((0, 0), (0, at + length - count)))))
    return found


@settings(deadline=None, max_examples=300)
@given(
    count=st.integers(1, 120),
    length=st.integers(1, 40),
    overlap=st.integers(0, 39),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    channels=st.integers(1, 3),
    tail=st.sampled_from(TAILS),
    together=st.integers(1, 4),
)
def test_windows_of_a_stream_are_those_of_the_whole(
    count: int, length: int, overlap: int, sizes: list[int], channels: int, tail: Tail, together: int
) -> None:
    step = max(1, length - overlap)
    samples = np.arange(1, count * channels + 1, dtype=np.float32).reshape(channels, count)
    stream = split_blocks(samples, sizes)
    if count < length and tail != "pad":
        with pytest.raises(AudioError, match=f"{count} of {length} samples"):
            list(iter_windows(stream, length=length, hop=step, tail=tail))
        return
    found = []
    for starts, some in iter_windows(stream, length=length, hop=step, tail=tail, batch_size=together):
        assert (some.shape[1:], str(some.dtype), some.flags.c_contiguous) == ((channels, length), "float32", True)
        found.append((starts, some.copy()))
        some[:] = -1  # the caller owns the arrays: changing them must not affect later windows
    expected = cut_slowly(samples, length=length, step=step, tail=tail)
    assert [start for starts, _ in found for start in starts] == [start for start, _ in expected]
    assert [len(some) for _, some in found[:-1]] == [together] * (len(found) - 1)
    together_again = np.concatenate([some for _, some in found])
    np.testing.assert_array_equal(together_again, np.stack([window for _, window in expected]))


@pytest.mark.parametrize(
    ("tail", "starts"), [("drop", [0, 4, 8]), ("pad", [0, 4, 8, 12]), ("shift", [0, 4, 8, 9])], ids=TAILS
)
def test_the_tail_of_nineteen_samples(tail: Tail, starts: list[int]) -> None:
    samples = np.arange(19, dtype=np.float32)[None]
    found = list(iter_windows([samples.T], length=10, hop=4, tail=tail))
    assert [start for (start,), _ in found] == starts
    last = {"drop": [*range(8, 18)], "pad": [*range(12, 19), 0, 0, 0], "shift": [*range(9, 19)]}
    assert found[-1][1].tolist() == [[last[tail]]]


def test_windows_of_endless_audio_come_while_it_lasts() -> None:
    """From an infinite stream only the needed samples are read."""
    endless = (np.full((7, 2), number, np.float32) for number in itertools.count())
    first = list(itertools.islice(iter_windows(endless, length=14, hop=7, tail="pad"), 1000))
    assert [start for (start,), _ in first] == list(range(0, 7000, 7))
    assert next(endless)[0, 0] == 1001


@pytest.mark.parametrize("step", [0, 11])
def test_steps_that_stand_still_or_leave_gaps_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"hop={step} .*length=10"):
        list(iter_windows([], length=10, hop=step, tail="drop"))


@pytest.mark.parametrize("tail", TAILS)
def test_no_samples_make_no_window(tail: Tail) -> None:
    with pytest.raises(AudioError, match="0 of 10 samples"):
        list(iter_windows([], length=10, hop=10, tail=tail))
