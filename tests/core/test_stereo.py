"""Mid and side: the inverse, powers, the mono mix, and which signals of a clip are evaluated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from presto_core.errors import UserError
from presto_core.metrics.stereo import split_channels, to_mid_side


@pytest.mark.parametrize("as_tensor", [False, True])
def test_mid_and_side_are_invertible_keep_the_power_and_mid_is_the_mono_mix(as_tensor: bool) -> None:
    batch = np.random.default_rng(0).standard_normal((3, 2, 100))
    mid_side = np.asarray(to_mid_side(torch.from_numpy(batch)) if as_tensor else to_mid_side(batch))
    mid, side = mid_side[:, 0], mid_side[:, 1]
    np.testing.assert_allclose(np.stack([mid + side, mid - side], axis=1), batch, atol=1e-12)
    np.testing.assert_allclose((batch**2).sum(), 2 * (mid_side**2).sum(), rtol=1e-12)
    np.testing.assert_array_equal(mid, batch.mean(axis=1))


def test_mono_is_evaluated_as_it_is_and_stereo_as_mid_and_side() -> None:
    mono, stereo = torch.randn(4, 1, 50), torch.randn(4, 2, 50)
    assert list(split_channels(mono)) == ["mid"]
    assert torch.equal(split_channels(mono)["mid"], mono[:, 0])
    parts = split_channels(stereo)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {"mid": (4, 50), "side": (4, 50)}
    assert torch.equal(torch.stack(list(parts.values()), dim=1), to_mid_side(stereo))


@pytest.mark.parametrize("shape", [(2, 3, 10), (2, 10), (2, 0, 10)])
def test_other_channel_counts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"mono or stereo"):
        split_channels(np.zeros(shape))
    if shape != (2, 10):
        with pytest.raises(UserError, match=r"two channels"):
            to_mid_side(np.zeros(shape))
