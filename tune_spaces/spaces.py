"""The predefined search spaces by name, and their union."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tune_spaces import distillation, layers, losses, noise, paper
from tune_spaces.domains import Space

SPACES: dict[str, Callable[[int], Space]] = {
    "noise": lambda depth: noise.NOISE,
    "noise-points": lambda depth: noise.NOISE_POINTS,
    "layers": layers.make_layers_space,
    "few-layers": layers.make_few_layers_space,
    "losses": lambda depth: losses.LOSSES,
    "distillation": lambda depth: distillation.DISTILLATION,
    "paper": lambda depth: paper.DISTRIBUTIONS,
    "paper-inputs": lambda depth: paper.INPUTS,
    "paper-layers": lambda depth: paper.LAYER_PARTS,
    "ratio": lambda depth: paper.RATIO,
    "nu": lambda depth: paper.NU,
    "nu-by-latent-size": lambda depth: paper.NU_BY_LATENT_SIZE,
    "seeds": lambda depth: paper.SEEDS,
}


def union(names: Iterable[str], *, depth: int) -> Space:
    """Return one space with all keys; the later space wins if two have the same key.

    Args:
        depth: number of transformer blocks for layer budgets.

    Raises:
        KeyError: a name is unknown.
    """
    return {key: domain for name in names for key, domain in SPACES[name](depth).items()}
