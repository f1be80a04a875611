"""How many latent frames a clip of a given length has, and which of them a part of the audio is in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.inference.clip_audio import count_samples
from pipelines.inference.model import Model
from presto_core.errors import UserError

FRAME_MULTIPLE = 16  # frames of a clip are a multiple of it; every patch size in use divides it


def count_frames(model: Model, seconds: float | None) -> int:
    """Return latent frames that a clip of this length needs, at least; None means the length of training.

    Raises:
        UserError: the model always makes clips of one length, which this exceeds.
    """
    longest = model.card.clip_seconds
    if longest is not None and seconds is not None and seconds > longest + 1e-6:
        raise UserError(f"seconds={seconds:g} is longer than the {longest:.2f} s of every clip of this model")
    if seconds is None or longest is not None:
        return model.card.frames
    frames = count_samples(seconds, model.codec.sample_rate_hz) / model.codec.hop
    return math.ceil(frames / FRAME_MULTIPLE) * FRAME_MULTIPLE


def count_overlap(window: int) -> int:
    """Frames that two windows share: two fifths, so that few windows are needed and each hears what is before it."""
    return max(1, window * 2 // 5)


def check_seconds(seconds: float | None) -> None:
    """Refuse a length that is not a positive number; raises UserError."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"seconds={seconds} must be above 0 and finite; leave it out for the length of training")


@dataclass(frozen=True)
class Span:
    """The part of audio in latent frames that a model sees when it makes a region anew.

    Attributes:
        start: first frame of the span, counted from the beginning of the audio.
        frames: its length, at least that of training.
        made: first frame to make and the one after the last, counted from `start`. The codec's margin is in it, so no
            known frame has heard the region.
        known_stop: frames from there on lie beyond the end of the audio, counted from `start`.
    """

    start: int
    frames: int
    made: tuple[int, int]
    known_stop: int


def choose_span(region: tuple[int, int], *, samples: int, hop: int, margin: int, window: int) -> Span:
    """Return the span around a region (first sample, the one after the last) of audio that is `samples` long.

    It has at least half a window of what is around the region, if there is as much: on both sides alike, or more on one
    where the other ends.
    """
    total = -(-samples // hop)
    first = max(0, region[0] // hop - margin)
    stop = min(total, -(-region[1] // hop) + margin)
    length = stop - first
    around = max(window - length, window // 2)
    left = min(first, around // 2)
    right = min(total - stop, around - left)
    left = min(first, around - right)
    start = first - left
    frames = max(window, left + length + right)
    return Span(start, frames, (first - start, stop - start), samples // hop - start)
