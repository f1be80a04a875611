"""The Wiener denoiser of a set of latents: the best linear denoiser, which knows a spectrum and no music."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(frames: int) -> Tensor:
    """Return the orthonormal DCT-II matrix W: [frames, frames] fp64; W x transforms a column x, and W^T inverts it."""
    k = torch.arange(frames, dtype=torch.float64)[:, None]
    t = torch.arange(frames, dtype=torch.float64)[None, :]
    # W[k, t] = sqrt(2 / T) cos(pi k (t + 1/2) / T), and row 0 is 1 / sqrt(T)
    matrix = math.sqrt(2 / frames) * torch.cos(math.pi * k * (t + 0.5) / frames)
    matrix[0] = 1 / math.sqrt(frames)
    return matrix


def transform(x: Tensor) -> Tensor:
    """Return the DCT-II coefficients over time of x: [..., T], in its dtype and on its device."""
    return x @ dct_matrix(x.shape[-1]).to(x).T


def invert(coefficients: Tensor) -> Tensor:
    """Return the signal [..., T] whose DCT-II coefficients are given: the inverse of `transform`."""
    return coefficients @ dct_matrix(coefficients.shape[-1]).to(coefficients)


def estimate_spectrum(latents: Tensor) -> Tensor:
    """Return lambda: [C, T] fp64, the mean square of each DCT coefficient of normalised latents: [B, C, T].

    The latents have mean 0 (they are normalised per channel), so the mean square is the variance. A stationary
    process is diagonal in this basis up to effects of the clip's ends.
    """
    return transform(latents.double()).square().mean(dim=0)


def wiener_gain(sigma: Tensor, spectrum: Tensor) -> Tensor:
    """Return lambda / (lambda + sigma^2): [B, C, T] in fp32, from sigma: [B] > 0 and spectrum lambda: [C, T]."""
    variance = spectrum.to(device=sigma.device, dtype=torch.float32)
    return variance / (variance + sigma.float()[:, None, None] ** 2)


def denoise_wiener(x: Tensor, sigma: Tensor, spectrum: Tensor) -> Tensor:
    """Return E[x0 | x] under a Gaussian prior of this spectrum: [B, C, T] fp32, of x: [B, C, T], sigma: [B].

    No other denoiser that is linear and diagonal in the DCT has a smaller squared error on the latents of `spectrum`.
    """
    # Wiener: D(x; sigma) = W^T [lambda / (lambda + sigma^2)] W x
    return invert(wiener_gain(sigma, spectrum) * transform(x.float()))


def compute_wiener_error(sigma: Tensor, spectrum: Tensor) -> Tensor:
    """Return the mean square error per element of `denoise_wiener` on latents of this spectrum [C, T]: [B] fp32."""
    # MSE(sigma) = mean over c, k of lambda sigma^2 / (lambda + sigma^2)
    return (wiener_gain(sigma, spectrum) * sigma.float()[:, None, None] ** 2).mean(dim=(1, 2))
