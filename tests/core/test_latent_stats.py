"""Mean and standard deviation of latents equal NumPy's for any split into parts."""

from __future__ import annotations

import numpy as np
import pytest

from presto_core.audio.latent_stats import LatentStats


def latents(rows: int, *, seed: int = 0) -> np.ndarray:
    """[rows, 3, 11] float16 with a different mean and standard deviation per channel."""
    normal = np.random.default_rng(seed).standard_normal((rows, 3, 11))
    return (normal * np.array([1, 20, 0.01])[:, None] + np.array([0, -50, 5])[:, None]).astype(np.float16)


def test_statistics_are_numpys() -> None:
    x = latents(40)
    stats = LatentStats.from_latents(x)
    assert stats.count == 40 * 11
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean((0, 2)), rtol=1e-13)
    assert stats.std == pytest.approx(np.sqrt(x.astype(np.float64).var((0, 2)).mean()), rel=1e-13)


@pytest.mark.parametrize("sizes", [(1,), (1, 39), (13, 2, 25), (1,) * 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_merged_parts_are_the_whole(sizes: tuple[int, ...], backwards: bool) -> None:
    x = latents(sum(sizes))
    parts = [LatentStats.from_latents(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    merged, whole = LatentStats.merge_all(parts[::-1] if backwards else parts), LatentStats.from_latents(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    assert merged.std == pytest.approx(whole.std, rel=1e-12)


def test_statistics_of_a_constant_channel_with_a_large_mean() -> None:
    """A naive sum of squares would lose the standard deviation here: 1e8 +- 1e-3 in float64."""
    x = 1e8 + np.array([[[-1e-3, 1e-3]]]).repeat(50, axis=0)
    merged = LatentStats.merge_all([LatentStats.from_latents(part) for part in np.split(x, 10)])
    assert merged.std == pytest.approx(1e-3, rel=1e-4)
