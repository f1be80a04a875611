"""The random generator of one step; apart from the state of training, which generation does not need."""

from __future__ import annotations

import numpy as np
import torch


def make_step_rng(seed: int, *, total_step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one step, the same on every worker and independent of earlier steps."""
    state = np.random.SeedSequence([seed, 0, total_step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
