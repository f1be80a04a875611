"""Intervals of shares of clips, such as hit rates, with tracks as the independent observations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hit_interval(
    *, hits: NDArray[np.floating], chances: NDArray[np.floating], groups: NDArray[np.integer], confidence: float
) -> tuple[float, float]:
    """Return the interval of the share sum(hits) / sum(chances), clips of one track counting as one observation.

    The exact binomial interval at an effective number of chances: share (1 - share) / variance, the variance by leaving
    out each track in turn (Korn and Graubard 1998). A share of 0 or 1 takes the number of tracks instead.

    Args:
        hits, chances, groups: [N] per clip; clips without a chance are ignored.
        confidence: probability that the interval covers.

    Raises:
        ValueError: fewer than two tracks have a chance.
    """
    from scipy.stats import beta, t

    kept = chances > 0
    _, track = np.unique(groups[kept], return_inverse=True)
    num_tracks = int(track.max()) + 1 if len(track) else 0
    if num_tracks < 2:
        raise ValueError(f"an interval needs chances on two tracks, not {num_tracks}")
    track_hits, track_chances = np.bincount(track, hits[kept]), np.bincount(track, chances[kept])
    total_hits, total_chances = track_hits.sum(), track_chances.sum()
    share = total_hits / total_chances
    without = (total_hits - track_hits) / (total_chances - track_chances)
    # jackknife: (G - 1)/G sum (theta_g - mean)^2
    variance = (num_tracks - 1) * without.var()
    tail = (1 - confidence) / 2
    if share in (0.0, 1.0):
        effective = float(num_tracks)
    elif variance == 0:
        effective = total_chances
    else:
        shrink = (t.ppf(tail, max(total_chances - 1, 1)) / t.ppf(tail, num_tracks - 1)) ** 2
        effective = min(share * (1 - share) / variance * shrink, total_chances)
    found = share * effective
    low = beta.ppf(tail, found, effective - found + 1) if share > 0 else 0.0
    high = beta.ppf(1 - tail, found + 1, effective - found) if share < 1 else 1.0
    return float(low), float(high)
