"""EDM preconditioning and guidance: unit variances, limits, identities."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from presto_core.diffusion.denoiser import EDMDenoiser, add_noise, preconditioning
from presto_core.diffusion.guidance import make_guided_denoiser
from tests.support.toy_networks import conditions

SIGMA_DATA = 0.7


class Identity(nn.Module):
    def forward(self, x, c_noise, cond, budget=None):
        return x


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 10.0, 80.0])
def test_network_input_and_target_have_unit_variance(sigma: float):
    rng = torch.Generator().manual_seed(0)
    x0 = SIGMA_DATA * torch.randn(64, 16, 64, generator=rng, dtype=torch.float64)
    level = torch.full((64,), sigma)
    noisy = add_noise(x0, level, generator=rng)
    c_skip, c_out, c_in, _ = (c.double() for c in preconditioning(level, SIGMA_DATA))
    assert float((c_in * noisy).std()) == pytest.approx(1.0, rel=0.01)
    # regression target of F: (x0 - c_skip x) / c_out
    assert float(((x0 - c_skip * noisy) / c_out).std()) == pytest.approx(1.0, rel=0.01)


def test_denoiser_combines_as_edm_states():
    x, sigma = torch.randn(2, 3, 4), torch.tensor([0.3, 5.0])
    denoised = EDMDenoiser(Identity(), SIGMA_DATA)(x, sigma, None)
    s, d = sigma[:, None, None], SIGMA_DATA
    expected = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * (x / (s**2 + d**2).sqrt())
    torch.testing.assert_close(denoised, expected)


def test_without_noise_the_input_comes_back():
    x = torch.randn(2, 3, 4)
    denoised = EDMDenoiser(Identity(), SIGMA_DATA)(x, torch.full((2,), 1e-6), None)
    torch.testing.assert_close(denoised, x, atol=1e-5, rtol=0)


def test_preconditioning_stays_fp32_under_autocast():
    class Half(nn.Module):
        def forward(self, x, c_noise, cond, budget=None):
            assert torch.is_autocast_enabled("cpu")
            return x.bfloat16()

    denoise = EDMDenoiser(Half(), SIGMA_DATA, autocast_dtype=torch.bfloat16)
    assert denoise(torch.randn(2, 3, 4), torch.ones(2), None).dtype == torch.float32


def test_guidance_one_is_the_plain_denoiser():
    denoise = EDMDenoiser(Identity(), SIGMA_DATA)
    assert make_guided_denoiser(denoise, 1.0) is denoise


def test_guidance_extrapolates_between_unconditional_and_conditional():
    def denoise(x, sigma, cond, budget=None):
        return torch.where(cond.keep[:, None, None], 3.0, 1.0).expand_as(x)

    cond, x, sigma = conditions(2), torch.zeros(2, 3, 4), torch.ones(2)
    for scale, value in ((0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (0.5, 2.0)):
        assert torch.equal(make_guided_denoiser(denoise, scale)(x, sigma, cond), torch.full((2, 3, 4), value))


@pytest.mark.parametrize("budget", [None, 3, torch.tensor([2, 4])])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guidance_runs_both_estimates_at_the_budget(scale: float, budget):
    seen = []

    def denoise(x, sigma, cond, budget=None):
        seen.append(budget)
        return x

    make_guided_denoiser(denoise, scale)(torch.zeros(2, 3, 4), torch.ones(2), conditions(2), budget)
    (received,) = seen
    if isinstance(budget, torch.Tensor):
        assert received.tolist() == budget.tolist() * (2 if scale == 2 else 1)
    else:
        assert received == budget


def test_guidance_without_conditions_is_refused():
    with pytest.raises(ValueError, match="guidance_scale=2"):
        make_guided_denoiser(EDMDenoiser(Identity(), SIGMA_DATA), 2)(torch.zeros(1, 2, 2), torch.ones(1), None)


def test_dropping_conditions_makes_samples_unconditional_and_keeps_earlier_drops():
    cond = conditions(4).to_unconditional()
    cond = replace(cond, keep=torch.tensor([True, True, False, False]))
    assert cond.keep_where(torch.tensor([True, False, True, False])).keep.tolist() == [True, False, False, False]
