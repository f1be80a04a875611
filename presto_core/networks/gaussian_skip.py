"""A skip connection that denoises Gaussian latents exactly, so that a network learns what a spectrum cannot know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.device import send
from presto_core.diffusion.wiener import dct_matrix


class GaussianSkip(nn.Module):
    """The Wiener denoiser of a spectrum in terms of the raw network F under EDM preconditioning.

    A network of zero output with this skip is `denoise_wiener`: the best linear denoiser of the training set, per
    channel and temporal frequency. Without it, a clip's mean and slow changes, a large part of the variance of music
    latents, must pass through the features of single tokens.

    Attributes:
        spectrum: [C, K] variance of the DCT-II coefficients of normalised latents; ones until `fit`, which is the
            prior of EDM's own c_skip, so that the skip adds nothing.

    Args:
        channels: latent channels C.
        bins: frequencies K of the spectrum; exact for latents of K frames, interpolated for others.
        sigma_data: standard deviation of the normalised latents.
    """

    spectrum: Tensor

    def __init__(self, *, channels: int, bins: int, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("spectrum", torch.full((channels, bins), sigma_data**2))

    def fit(self, spectrum: Tensor) -> None:
        """Set the spectrum from that of the training latents, `estimate_spectrum`: [C, T]."""
        self.spectrum.copy_(_resample(spectrum, self.spectrum.shape[1]))

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the skip's part of F, and the Wiener estimate whitened over frequency at unit power: [B, C, T] fp32.

        Whitened, quiet details stand beside the loud clip mean where they are above the noise, and vanish where not.

        Args:
            x: [B, C, T] latents scaled by c_in.
            time: [B] c_noise = ln(sigma) / 4.
        """
        with torch.autocast(x.device.type, enabled=False):
            sigma = (4 * time.float()).exp()[:, None, None]
            variance, sigma_data = _resample(self.spectrum, x.shape[-1]), self.sigma_data
            basis = send(dct_matrix(x.shape[-1]).float(), x.device)
            coefficients = x.float() @ basis.T
            total, total_data = variance + sigma**2, sigma_data**2 + sigma**2
            # D = Wiener(x) = c_skip x + c_out F(c_in x) is solved by F = G c_in x with
            # G = (lambda / (lambda + s^2) - c_skip) / (c_out c_in) = s (lambda - s_d^2) / (s_d (lambda + s^2))
            raw = (sigma * (variance - sigma_data**2) / (sigma_data * total) * coefficients) @ basis
            # whitened: sqrt(lambda) / (lambda + s^2) of the noisy latents, of mean power lambda / (lambda + s^2) over k
            power = (variance / total).mean(dim=-1, keepdim=True)
            gain = variance.sqrt() / total * total_data.sqrt() / power.sqrt()
            return raw, (gain * coefficients) @ basis


def _resample(spectrum: Tensor, bins: int) -> Tensor:
    """Interpolate a spectrum [C, K] linearly in frequency to [C, bins]; its ends stay."""
    if spectrum.shape[1] == bins:
        return spectrum
    return F.interpolate(spectrum[None], size=bins, mode="linear", align_corners=True)[0]
