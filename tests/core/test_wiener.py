"""The Wiener denoiser against closed forms of Gaussian processes."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dct

from presto_core.diffusion.wiener import (
    compute_wiener_error,
    dct_matrix,
    denoise_wiener,
    estimate_spectrum,
    invert,
    transform,
)


def _gaussian_latents(rows: int, spectrum: torch.Tensor) -> torch.Tensor:
    """Draw latents [rows, C, T] fp64 whose DCT coefficients are independent with these variances."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, *spectrum.shape, generator=generator, dtype=torch.float64)
    return invert(spectrum.sqrt() * noise)


def _pink_spectrum(channels: int, frames: int) -> torch.Tensor:
    slopes = torch.arange(1, channels + 1, dtype=torch.float64)[:, None]
    return slopes / (1 + torch.arange(frames, dtype=torch.float64))


@pytest.mark.parametrize("frames", [1, 2, 13, 130])
def test_dct_matrix_is_orthonormal_and_is_scipys(frames: int) -> None:
    matrix = dct_matrix(frames)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(frames, dtype=torch.float64), atol=1e-12, rtol=0)
    x = torch.randn(3, frames, dtype=torch.float64)
    expected = torch.from_numpy(dct(x.numpy(), type=2, norm="ortho"))
    torch.testing.assert_close(transform(x), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(invert(transform(x)), x, atol=1e-12, rtol=0)


def test_spectrum_of_white_latents_is_flat_and_keeps_their_energy() -> None:
    latents = torch.randn(4000, 2, 16, generator=torch.Generator().manual_seed(1))
    spectrum = estimate_spectrum(latents)
    assert spectrum.mean().item() == pytest.approx(latents.double().square().mean().item(), rel=1e-12)
    torch.testing.assert_close(spectrum, torch.ones(2, 16, dtype=torch.float64), atol=0.12, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_error_of_a_gaussian_process_is_the_closed_form(sigma: float) -> None:
    spectrum = _pink_spectrum(3, 24)
    latents = _gaussian_latents(4000, spectrum)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    level = torch.full((4000,), sigma)
    error = (denoise_wiener(latents + sigma * noise, level, spectrum) - latents).square().mean().item()
    expected = (spectrum * sigma**2 / (spectrum + sigma**2)).mean().item()
    assert error == pytest.approx(expected, rel=0.02)
    assert compute_wiener_error(level[:1], spectrum).item() == pytest.approx(expected, rel=1e-5)


def test_no_other_diagonal_gain_has_a_smaller_error_on_its_own_rows() -> None:
    latents = torch.randn(64, 2, 12, generator=torch.Generator().manual_seed(3)).cumsum(dim=-1)
    spectrum = estimate_spectrum(latents)

    def error(gain: torch.Tensor) -> torch.Tensor:  # expected over the noise of level 1
        return (spectrum * (1 - gain) ** 2 + gain**2).mean()

    gain = spectrum / (spectrum + 1)
    assert all(error(gain) < error(gain + change) for change in (0.01, -0.01))
    assert error(gain).item() == pytest.approx(compute_wiener_error(torch.ones(1), spectrum).item(), rel=1e-5)


def test_limits_little_noise_keeps_the_input_and_much_noise_leaves_the_mean() -> None:
    spectrum = _pink_spectrum(2, 8)
    x = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(4))
    denoised = denoise_wiener(x, torch.tensor([1e-4, 1e4]), spectrum)
    torch.testing.assert_close(denoised[0], x[0], atol=1e-5, rtol=0)
    assert denoised[1].abs().max() < 1e-6
