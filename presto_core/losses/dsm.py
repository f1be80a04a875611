"""Denoising score matching: the loss of the teacher and of the fake score (METHOD section 1, L_EDM and L_DSM)."""

from __future__ import annotations

from torch import Tensor

from presto_core.diffusion.preconditions import Precondition, to_precondition


def dsm_loss(x0_hat: Tensor, x0: Tensor, sigma: Tensor, precondition: Precondition | float) -> Tensor:
    """Return lambda(sigma) |x0_hat - x0|^2, averaged over the elements of a sample.

    Args:
        x0_hat: [B, C, T] denoised estimate.
        x0: [B, C, T] clean latents.
        sigma: [B] noise level of the denoiser's input.
        precondition: of the denoiser, whose weight is 1 / c_out^2; a number is the sigma_data of EDM's.

    Returns:
        [B] fp32; in EDM's, 1 in expectation for a denoiser that outputs only c_skip x on data of variance sigma_data^2.
    """
    # METHOD section 1: L_EDM = E[lambda(sigma) |D(x + sigma eps; sigma, c) - x|^2]
    return to_precondition(precondition).loss_weight(sigma) * (x0_hat.float() - x0.float()).square().mean(dim=(1, 2))
