"""The self-teacher loss of layer distillation: fewer blocks should leave what all of them leave (METHOD section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def self_teacher_loss(hidden: Tensor, full_hidden: Tensor) -> Tensor:
    """|h(x; b) - sg(h(x; L))|^2, averaged over a sample's elements.

    Args:
        hidden: [B, N, D] what the last block gave at the budget b.
        full_hidden: [B, N, D] what it gave at full depth L, in the same network.

    Returns:
        [B] fp32; both are normalised over D first, so that it lies between 0 and 4 whatever the activations' size.
    """
    # h = normalised output of the last block
    h, h_full = (F.layer_norm(t.float(), t.shape[-1:]) for t in (hidden, full_hidden.detach()))
    return (h - h_full).square().mean(dim=(1, 2))
