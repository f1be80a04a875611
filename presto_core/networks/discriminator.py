"""The discriminator head: a 1-D patch critic on the fake score's activations (METHOD section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchHead(nn.Module):
    """{Conv1d k4 s2, GroupNorm, SiLU} x layers -> Conv1d: one score per patch of time.

    Args:
        feature_dim: width D of one tapped block.
        num_taps: number of tapped blocks, whose features are concatenated.
        channels: width of the convolutions.
        layers: number of convolutions that halve the time axis.
    """

    def __init__(self, feature_dim: int, *, num_taps: int, channels: int, layers: int) -> None:
        super().__init__()
        widths = [feature_dim * num_taps] + [channels] * layers
        conv_blocks = [_conv_block(a, b) for a, b in zip(widths, widths[1:])]
        self.layers = nn.Sequential(*conv_blocks, nn.Conv1d(widths[-1], 1, kernel_size=3, padding=1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute scores [B, P] from features: one [B, D, N] per tap.

        Raises:
            ValueError: N is too small for the number of layers.
        """
        tokens, halvings = features[0].shape[-1], len(self.layers) - 1
        if tokens < 2**halvings:
            raise ValueError(f"steps.gan.head_layers={halvings} is too large for {tokens} tokens; lower it")
        scores: Tensor = self.layers(torch.cat(features, dim=1))
        return scores.squeeze(1)


def _conv_block(width_in: int, width_out: int) -> nn.Sequential:
    groups = next(g for g in (8, 4, 2, 1) if width_out % g == 0)
    return nn.Sequential(
        nn.Conv1d(width_in, width_out, kernel_size=4, stride=2, padding=1),
        nn.GroupNorm(groups, width_out),
        nn.SiLU(),
    )
