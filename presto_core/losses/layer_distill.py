"""The self-teacher loss of layer distillation: fewer blocks match the output of all blocks (METHOD section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def self_teacher_loss(hidden: Tensor, full_hidden: Tensor) -> Tensor:
    """Return |h(x; b) - sg(h(x; L))|^2, averaged over the elements of a sample.

    Args:
        hidden: [B, N, D] output of the last block at budget b.
        full_hidden: [B, N, D] output of the last block at full depth L, in the same network.

    Returns:
        [B] fp32; both are normalised over D first, so it is between 0 and 4 at any scale of the activations.
    """
    # h is the normalised output of the last block: mean(h^2) = 1, so mean|h - h'|^2 <= (1 + 1)^2
    h, h_full = (F.layer_norm(t.float(), t.shape[-1:]) for t in (hidden, full_hidden.detach()))
    return (h - h_full).square().mean(dim=(1, 2))
