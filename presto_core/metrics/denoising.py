"""Held-out denoising error of a model against the Wiener denoiser, by noise level, and the lines of the gate on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from presto_core.metrics.intervals import MIN_TRACKS, jackknife_half_width
from presto_core.metrics.replicates import deal_tracks
from presto_core.metrics.teacher_gate import GateLine, Interval

SIGMAS = tuple(float(sigma) for sigma in np.geomspace(0.02, 40, 8))
"""Eight noise levels of normalised latents, from details that are hardly hidden to noise alone."""
ROUNDING = 1e-6  # relative, of errors in fp32: a network that is the Wiener denoiser up to rounding ties with it


@dataclass(frozen=True)
class DenoisingComparison:
    """Errors of two denoisers at one noise level, on the same rows and the same noise.

    Attributes:
        sigma: the noise level.
        error, wiener_error: mean square errors per element of the normalised latents.
        ratio: error / wiener_error.
        interval: of the ratio, over tracks; None for fewer than four.
    """

    sigma: float
    error: float
    wiener_error: float
    ratio: float
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        return {**vars(self), "interval": self.interval and list(self.interval)}


def measure_errors(denoise: Callable[[Tensor], Tensor], x0: Tensor, noisy: Tensor) -> NDArray[np.float64]:
    """Return the mean square error of each row [B] of x0: [B, C, T] that `denoise` estimates from `noisy`.

    Raises:
        ValueError: an error is not finite.
    """
    with torch.inference_mode():
        errors = (denoise(noisy).double() - x0.double()).square().mean(dim=(1, 2))
    if not bool(errors.isfinite().all()):
        raise ValueError("an error of denoising is not finite")
    return np.asarray(errors.cpu().numpy(), dtype=np.float64)


def compare_errors(
    sigma: float,
    errors: NDArray[np.floating],
    wiener_errors: NDArray[np.floating],
    tracks: NDArray[np.integer],
    *,
    groups: int = 20,
    confidence: float = 0.95,
) -> DenoisingComparison:
    """Compare errors [N] of rows with the Wiener denoiser's on the same rows.

    Args:
        tracks: [N] number of the track of each row: rows of one track are not independent.
        groups: groups of tracks that are left out in turn for the interval.
    """
    folds = deal_tracks(len(errors), tracks, groups)
    ratio = float(errors.mean() / wiener_errors.mean())
    interval = None
    if len(np.unique(tracks)) >= MIN_TRACKS:
        kept = [folds != fold for fold in range(int(folds.max()) + 1)]
        without = [float(np.log(errors[keep].mean() / wiener_errors[keep].mean())) for keep in kept]
        # of the logarithm: a ratio's errors multiply
        half = jackknife_half_width(without, confidence=confidence) + ROUNDING
        interval = (ratio * float(np.exp(-half)), ratio * float(np.exp(half)))
    return DenoisingComparison(sigma, float(errors.mean()), float(wiener_errors.mean()), ratio, interval)


def list_denoising_lines(comparisons: list[DenoisingComparison]) -> list[GateLine]:
    """Return a line per noise level: a network that knows music has a smaller error than one that knows a spectrum."""
    return [
        GateLine(
            f"error / Wiener's, sigma {one.sigma:.2g}",
            one.ratio,
            1.0,
            "lower",
            one.interval,
            f"at sigma {one.sigma:.3g} its denoising error {one.error:.3g} is above the Wiener denoiser's "
            f"{one.wiener_error:.3g}",
            ".3f",
        )
        for one in comparisons
    ]
