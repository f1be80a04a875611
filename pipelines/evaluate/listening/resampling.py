"""Intervals over raters and prompts: both are drawn again with replacement (Owen 2007, the pigeonhole bootstrap).

A. B. Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007): an answer counts as often as its rater was drawn
times as often as its prompt was, so that what raters share and what prompts share widens the interval. It errs on the
wide side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RESAMPLES = 1000
FEW_RATERS = 5


def draw_weights(raters: int, prompts: int, *, resamples: int, seed: int) -> Iterator[Array]:
    """Yield weights [raters, prompts] of answers. With one rater or one prompt, only the other is drawn."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.outer(_draw_counts(rng, raters), _draw_counts(rng, prompts))


def estimate_intervals(
    statistic: Callable[[Array], Array],
    raters: int,
    prompts: int,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Array | None:
    """Return percentile intervals [2, ...] of a statistic of the weights, or None with one rater and one prompt.

    Args:
        statistic: weights [raters, prompts] -> values; NaN where a resample holds no answer.
    """
    if raters < 2 and prompts < 2:
        return None
    values = [statistic(w) for w in draw_weights(raters, prompts, resamples=resamples, seed=seed)]
    tail = (1 - confidence) / 2
    return np.asarray(np.nanquantile(np.stack(values), [tail, 1 - tail], axis=0))


def describe_precision(raters: int, prompts: int) -> list[str]:
    """What a reader of the intervals must know, if raters or prompts are few."""
    if raters == 0:
        return ["no rater is left: there are no results"]
    if raters < 2 and prompts < 2:
        return ["one rater and one prompt: no interval is possible"]
    if raters < 2:
        return ["one rater: intervals are over prompts and hold for this rater alone"]
    notes = ["one prompt: intervals are over raters and hold for this prompt alone"] if prompts < 2 else []
    if raters < FEW_RATERS:
        notes.append(f"{raters} raters: intervals are rough; collect answers of at least {FEW_RATERS}, better 15")
    return notes


def _draw_counts(rng: np.random.Generator, size: int) -> Array:
    return rng.multinomial(size, np.full(size, 1 / size)).astype(np.float64) if size > 1 else np.ones(size)
