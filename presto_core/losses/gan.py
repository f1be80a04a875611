"""Adversarial losses on patch scores: least squares as in the Presto paper, and alternatives (METHOD section 3).

Scores are [B, P]; every loss is [B], averaged over patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor, kind: str) -> Tensor:
    """Return the loss of head and fake score: real scores towards 1 (or up), fake scores towards 0 (or down)."""
    return _DISCRIMINATOR_LOSSES[kind](real_scores, fake_scores).mean(dim=1)


def generator_loss(fake_scores: Tensor, kind: str, real_scores: Tensor | None = None) -> Tensor:
    """Return the loss of the generator; `relativistic` also compares with real scores.

    Raises:
        ValueError: `relativistic` without `real_scores`.
    """
    if kind == "relativistic":
        if real_scores is None:
            raise ValueError("the relativistic generator loss needs real_scores; pass them")
        return F.softplus(real_scores - fake_scores).mean(dim=1)
    return _GENERATOR_LOSSES[kind](fake_scores).mean(dim=1)


def approximate_r1(scores: Tensor, perturbed_scores: Tensor, std: float) -> Tensor:
    """Return the finite-difference gradient penalty |D(x_t + std n) - D(x_t)|^2 / std^2 [B] (METHOD section 3).

    `perturbed_scores` must come from the *noised* latents plus a small perturbation at the same sigma: perturbing clean
    latents without noise would penalise the head on inputs that it never sees.
    """
    # n ~ N(0, I): E|(D(x + std n) - D(x)) / std|^2 -> |dD/dx|^2 as std -> 0
    return ((perturbed_scores - scores) / std).square().mean(dim=1)


_DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # L_D = E[(D(real) - 1)^2] + E[D(fake)^2]
    "lsgan": lambda real, fake: (real - 1).square() + fake.square(),
    "nonsat": lambda real, fake: F.softplus(-real) + F.softplus(fake),
    "hinge": lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
    "relativistic": lambda real, fake: F.softplus(fake - real),
}

_GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    # L_G = E[(1 - D(fake))^2]
    "lsgan": lambda fake: (1 - fake).square(),
    "nonsat": lambda fake: F.softplus(-fake),
    "hinge": lambda fake: -fake,
}
