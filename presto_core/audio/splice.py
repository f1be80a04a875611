"""Put new audio between kept audio: the kept samples stay bit for bit, and the seams lie inside the new part.

What is kept is continued into the new part by linear prediction and cross-faded with it there, so that neither a click
nor a hole is heard, whatever was there before and whatever phase the codec gives the new audio.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

SEAM_SECONDS = 0.03  # of a cross-fade: longer than a period of 40 Hz, shorter than most notes
HISTORY_SECONDS = 0.2  # that the continuation is predicted from
MAX_ORDER = 512  # of the prediction: resolves tones 90 Hz apart at 44.1 kHz, nearer ones by their poles


def insert(kept: Audio, made: Audio, *, start: int, rate_hz: int, fade_ends: int = 0) -> Audio:
    """Return kept [A, N] with samples start ... start + M - 1 replaced by made [A, M]; all others are equal in bits.

    Args:
        fade_ends: samples over which the made part fades where it is the beginning or the end of the whole.
    """
    stop = start + made.shape[1]
    seam = min(round(SEAM_SECONDS * rate_hz), made.shape[1] // 2)
    history = round(HISTORY_SECONDS * rate_hz)
    body = made.astype(np.float32)
    if start:
        body = _join(kept[:, max(0, start - history) : start], body, seam)
    elif fade_ends:
        body = _fade_in(body, min(fade_ends, seam))
    if stop < kept.shape[1]:
        body = _join(kept[:, stop : stop + history][:, ::-1], body[:, ::-1], seam)[:, ::-1]
    elif fade_ends:
        body = _fade_in(body[:, ::-1], min(fade_ends, seam))[:, ::-1]
    return np.concatenate([kept[:, :start], body, kept[:, stop:]], axis=1)


def close_loop(audio: Audio, before: Audio) -> Audio:
    """Return a loop [A, N] whose end flows into its start, by a cross-fade of its end to `before`.

    Args:
        before: [A, S] what is played before the first sample.
    """
    seam = before.shape[1]
    closed = audio.copy()
    closed[:, -seam:] = crossfade(audio[:, -seam:], before)
    return closed


def crossfade(old: Audio, new: Audio) -> Audio:
    """Fade from old to new, both [A, S], at constant power whether they are alike, unrelated or opposed.

    With gains a, b and correlation r the power is a^2 + b^2 + 2 r a b times that of either: the gains are divided by
    its root. Equal audio stays as it is.
    """
    size = old.shape[1]
    fall = 0.5 + 0.5 * np.cos(math.pi * (np.arange(size) + 0.5) / size)
    rise = 1 - fall
    powers = np.sqrt(np.square(old, dtype=np.float64).sum(1) * np.square(new, dtype=np.float64).sum(1))
    correlation = np.multiply(old, new, dtype=np.float64).sum(1) / np.maximum(powers, 1e-12)
    power = fall**2 + rise**2 + 2 * np.clip(correlation, -0.5, 1)[:, None] * fall * rise
    return ((fall * old + rise * new) / np.sqrt(power)).astype(np.float32)


def extrapolate(history: Audio, count: int) -> Audio:
    """Continue audio [A, H] by `count` samples as a sum of decaying tones: linear prediction fitted by Burg's method.

    The filter is stable, so the continuation never grows. Silence goes on as silence.
    """
    from scipy.signal import lfilter, lfiltic

    rows = []
    for channel in history.astype(np.float64):
        order = min(MAX_ORDER, len(channel) // 3)
        coefficients = fit_prediction(channel, order)
        state = lfiltic([1.0], coefficients, channel[::-1][:order])
        rows.append(lfilter([1.0], coefficients, np.zeros(count), zi=state)[0] if order else np.zeros(count))
    return np.stack(rows).astype(np.float32)


def fit_prediction(samples: Float64Array, order: int) -> Float64Array:
    """Return a = (1, a_1 ... a_order) that makes the errors sum_k a_k x[n - k] small in both directions (Burg 1967)."""
    coefficients = np.ones(1)
    forward, backward = samples[1:].copy(), samples[:-1].copy()
    for _ in range(order):
        energy = forward @ forward + backward @ backward
        if energy <= 1e-20 * len(samples):
            return np.concatenate([coefficients, np.zeros(order + 1 - len(coefficients))])
        # k = -2 sum f b / sum (f^2 + b^2);  a <- (a, 0) + k (0, a reversed)
        reflection = -2 * (forward @ backward) / energy
        longer = np.append(coefficients, 0.0)
        coefficients = longer + reflection * longer[::-1]
        forward, backward = (forward + reflection * backward)[1:], (backward + reflection * forward)[:-1]
    return coefficients


def _join(before: Audio, body: Audio, seam: int) -> Audio:
    """Let what is before the body go on into its first `seam` samples."""
    if not seam:
        return body
    return np.concatenate([crossfade(extrapolate(before, seam), body[:, :seam]), body[:, seam:]], axis=1)


def _fade_in(body: Audio, count: int) -> Audio:
    gains = np.ones(body.shape[1], np.float32)
    gains[:count] = 0.5 - 0.5 * np.cos(math.pi * np.arange(count) / max(count, 1))
    return body * gains
