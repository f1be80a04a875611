"""The Gaussian skip: exact Wiener denoising under EDM preconditioning, other lengths, and what carries it along."""

import pytest
import torch

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise
from presto_core.diffusion.wiener import denoise_wiener, estimate_spectrum
from presto_core.networks.dit import DiT
from presto_core.networks.gaussian_skip import GaussianSkip
from presto_core.networks.layer_budget import LayerBudget
from tests.support.toy_networks import TEXT_DIM, conditions

CHANNELS, FRAMES = 4, 24
SIGMAS = torch.tensor([0.01, 0.3, 1.0, 5.0, 70.0])


def smooth_latents(count: int, frames: int = FRAMES) -> torch.Tensor:
    """Latents of unit variance of which a clip's mean has a large part, as music has: [count, C, T]."""
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(count, CHANNELS, 1, generator=rng)
    return 0.7 * mean + 0.714 * torch.randn(count, CHANNELS, frames, generator=rng)


def make_net(bins: int = FRAMES) -> DiT:
    torch.manual_seed(0)
    return DiT(NetworkConfig(dim=16, depth=2, heads=2, spectrum_bins=bins), channels=CHANNELS, text_dim=TEXT_DIM)


def test_an_untrained_network_with_the_skip_is_the_wiener_denoiser():
    spectrum, net = estimate_spectrum(smooth_latents(512)), make_net()
    net.gaussian_skip.fit(spectrum)
    x = add_noise(smooth_latents(5), SIGMAS, generator=torch.Generator().manual_seed(1))
    denoised = EDMDenoiser(net, 1.0)(x, SIGMAS, conditions(5))
    torch.testing.assert_close(denoised, denoise_wiener(x, SIGMAS, spectrum), atol=2e-4, rtol=2e-4)


def test_without_a_spectrum_the_skip_adds_nothing():
    x = smooth_latents(5)
    raw, _ = GaussianSkip(channels=CHANNELS, bins=FRAMES)(x, SIGMAS.log() / 4)
    assert not raw.any()


def test_the_estimate_that_tokens_hold_has_unit_power():
    skip, x0 = GaussianSkip(channels=CHANNELS, bins=FRAMES), smooth_latents(4000)
    skip.fit(estimate_spectrum(x0))
    for sigma in SIGMAS.tolist():
        levels = torch.full((4000,), sigma)
        x = add_noise(x0, levels, generator=torch.Generator().manual_seed(1))
        _, estimate = skip(x / (1 + sigma**2) ** 0.5, levels.log() / 4)
        torch.testing.assert_close(estimate.square().mean(dim=(0, 2)), torch.ones(CHANNELS), atol=0.08, rtol=0)


@pytest.mark.parametrize("frames", [16, 24, 48])
def test_latents_of_another_length_are_denoised_better_than_without_the_skip(frames: int):
    skip = GaussianSkip(channels=CHANNELS, bins=FRAMES)
    skip.fit(estimate_spectrum(smooth_latents(512)))
    x0, sigma = smooth_latents(400, frames), torch.full((400,), 2.0)
    x = add_noise(x0, sigma, generator=torch.Generator().manual_seed(1))
    raw, _ = skip(x / 5**0.5, sigma.log() / 4)
    # EDM with sigma_data = 1: c_skip = 1 / 5, c_out = 2 / sqrt(5)
    errors = [float((x / 5 + gain * 2 / 5**0.5 * raw - x0).square().mean()) for gain in (0, 1)]
    assert errors[1] < 0.75 * errors[0]


def test_a_distilled_copy_carries_the_spectrum():
    net = make_net()
    net.gaussian_skip.fit(estimate_spectrum(smooth_latents(64)))
    budget = LayerBudget(kept=(1, 2), edges=(1.0,), mode="presto", conditioned=True, distribution={})
    copy = net.with_budget(budget)
    assert torch.equal(copy.gaussian_skip.spectrum, net.gaussian_skip.spectrum)
    x, time = smooth_latents(3), torch.zeros(3)
    assert torch.equal(copy(x, time, conditions(3)), net(x, time, conditions(3)))


def test_networks_without_the_skip_have_the_weights_that_they_had():
    assert not [name for name in make_net(0).state_dict() if "gaussian" in name]
    assert make_net(0).input.in_features == CHANNELS * 2
