"""Distribution matching distillation: the gradient that moves generator samples towards the teacher's distribution.

Yin et al. 2024 (DMD, DMD2) in the EDM form of METHOD section 3. Change the gradient here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from presto_core.diffusion.preconditions import Precondition, to_precondition

EPSILON = 1e-6  # keeps the dmd weight finite if generator and real score agree exactly


def dmd_gradient(
    x0: Tensor,
    real_x0: Tensor,
    fake_x0: Tensor,
    *,
    sigma: Tensor,
    precondition: Precondition | float,
    weighting: str,
) -> Tensor:
    """Return g = w (mu_fake - mu_real), the direction in which the generator's sample is too likely.

    Args:
        x0: [B, C, T] generator output.
        real_x0: [B, C, T] (guided) estimate of the real score for the noised `x0`.
        fake_x0: [B, C, T] estimate of the fake score for the same noised `x0`.
        sigma: [B] noise level of the two estimates.
        precondition: of the denoisers; a number is the sigma_data of EDM's.
        weighting: `dmd` 1 / mean|x0 - real_x0| (DMD, eq. 8), `edm` lambda(sigma) = 1 / c_out^2, `none` 1.

    Returns:
        [B, C, T] fp32 without graph.
    """
    with torch.no_grad():
        x0, real_x0, fake_x0 = x0.float(), real_x0.float(), fake_x0.float()
        weight = WEIGHTINGS[weighting](x0, real_x0, sigma, to_precondition(precondition))
        # METHOD section 3: g = w_t (mu_fake(x_t; sigma, c) - mu_real^w(x_t; sigma, c))
        return weight[:, None, None] * (fake_x0 - real_x0)


def _dmd_weight(x0: Tensor, real_x0: Tensor, sigma: Tensor, precondition: Precondition) -> Tensor:
    # DMD (Yin et al. 2024), eq. 8, per sample
    return 1 / ((x0 - real_x0).abs().mean(dim=(1, 2)) + EPSILON)


def _edm_weight(x0: Tensor, real_x0: Tensor, sigma: Tensor, precondition: Precondition) -> Tensor:
    return precondition.loss_weight(sigma)


def _unit_weight(x0: Tensor, real_x0: Tensor, sigma: Tensor, precondition: Precondition) -> Tensor:
    return torch.ones_like(sigma, dtype=torch.float32)


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, Tensor, Precondition], Tensor]] = {
    "dmd": _dmd_weight,
    "edm": _edm_weight,
    "none": _unit_weight,
}
