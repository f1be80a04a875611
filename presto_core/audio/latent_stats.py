"""Per-channel mean and overall standard deviation of latents, computed per shard and merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatentStats:
    """Moments of latents.

    Attributes:
        count: values per channel.
        mean: [C].
        m2: [C] sum of squared deviations from the mean.
    """

    count: int
    mean: Float64Array
    m2: Float64Array

    @staticmethod
    def from_latents(latents: npt.NDArray[np.floating]) -> LatentStats:
        """Compute the moments of latents [B, C, T]."""
        per_channel = np.asarray(latents, dtype=np.float64).swapaxes(0, 1).reshape(latents.shape[1], -1)
        mean = per_channel.mean(axis=1)
        return LatentStats(per_channel.shape[1], mean, ((per_channel - mean[:, None]) ** 2).sum(axis=1))

    def merge(self, other: LatentStats) -> LatentStats:
        """Combine the moments of two parts; independent of the order up to rounding."""
        # Chan, Golub & LeVeque 1979: M2 = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return LatentStats(count, mean, self.m2 + other.m2 + delta**2 * self.count * other.count / count)

    @property
    def std(self) -> float:
        """One standard deviation for all channels, so that dividing by it keeps their relative levels."""
        return float(np.sqrt((self.m2 / self.count).mean()))

    @staticmethod
    def merge_all(parts: list[LatentStats]) -> LatentStats:
        return reduce(LatentStats.merge, parts)
