"""Losses in closed form, float64 where it matters."""

import math

import pytest
import torch

from presto_core.diffusion.preconditions import Edm
from presto_core.losses.dmd import dmd_gradient
from presto_core.losses.dsm import dsm_loss
from presto_core.losses.gan import approximate_r1, discriminator_loss, generator_loss


def test_edm_weight_is_the_inverse_square_of_c_out():
    sigma = torch.tensor([0.1, 1.0, 30.0])
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(Edm(0.5).loss_weight(sigma), 1 / c_out**2)


def test_dsm_of_a_network_that_predicts_nothing_is_one():
    """A zero network gives x0_hat = c_skip x, whose weighted error is 1 at every noise level."""
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(256, 8, 32, generator=rng)
    for level in (0.01, 0.5, 3.0, 50.0):
        sigma = torch.full((256,), level)
        noisy = x0 + level * torch.randn(x0.shape, generator=rng)
        losses = dsm_loss(noisy / (1 + level**2), x0, sigma, 1.0)
        assert losses.shape == (256,)
        assert float(losses.mean()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("weighting", "weight"), [("none", 1.0), ("edm", 1.25 / 0.25), ("dmd", 1 / 2.0)])
def test_dmd_gradient_weights(weighting: str, weight: float):
    x0, real, fake = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 5.0)
    g = dmd_gradient(x0, real, fake, sigma=torch.full((2,), 0.5), precondition=1.0, weighting=weighting)
    torch.testing.assert_close(g, torch.full((2, 3, 4), 3.0 * weight))


def test_dmd_gradient_has_no_graph_and_is_finite_where_scores_agree():
    x0 = torch.zeros(1, 2, 2, requires_grad=True)
    g = dmd_gradient(x0, x0, x0 + 1, sigma=torch.ones(1), precondition=1.0, weighting="dmd")
    assert not g.requires_grad
    assert g.isfinite().all()


def test_dmd_gradient_of_gaussians_is_the_difference_of_scores():
    """For Gaussian generator and data, g / sigma^2 is the gradient of the KL divergence of the noised marginals."""
    sigma, m_fake, s_fake, m_real, s_real = 0.7, 0.4, 0.5, -0.2, 0.9
    x = torch.randn(1000, 1, 1, dtype=torch.float64)

    def denoise(mean: float, std: float) -> torch.Tensor:
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)

    def score(mean: float, std: float) -> torch.Tensor:
        return (mean - x) / (std**2 + sigma**2)

    g = dmd_gradient(
        x,
        denoise(m_real, s_real),
        denoise(m_fake, s_fake),
        sigma=torch.full((1000,), sigma),
        precondition=1.0,
        weighting="none",
    )
    expected = sigma**2 * (score(m_fake, s_fake) - score(m_real, s_real))
    torch.testing.assert_close(g.double(), expected, rtol=1e-4, atol=1e-5)


REAL, FAKE = torch.tensor([[0.8, 1.2]]), torch.tensor([[0.1, -0.3]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "discriminator", "generator"),
    [
        ("lsgan", (0.04 + 0.04 + 0.01 + 0.09) / 2, (0.81 + 1.69) / 2),
        (
            "nonsat",
            (softplus(-0.8) + softplus(0.1) + softplus(-1.2) + softplus(-0.3)) / 2,
            (softplus(-0.1) + softplus(0.3)) / 2,
        ),
        ("hinge", (0.2 + 1.1 + 0.0 + 0.7) / 2, (-0.1 + 0.3) / 2),
        ("relativistic", (softplus(-0.7) + softplus(-1.5)) / 2, (softplus(0.7) + softplus(1.5)) / 2),
    ],
)
def test_adversarial_losses_in_closed_form(kind: str, discriminator: float, generator: float):
    assert float(discriminator_loss(REAL, FAKE, kind)) == pytest.approx(discriminator, rel=1e-5)
    assert float(generator_loss(FAKE, kind, REAL)) == pytest.approx(generator, rel=1e-5)


def test_least_squares_optimum_is_the_density_ratio():
    """The minimiser of the least-squares discriminator loss is p_real / (p_real + p_fake)."""
    p_real, p_fake = 0.3, 0.7
    score = torch.tensor([[0.0]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([score], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        (p_real * (score - 1).square() + p_fake * score.square()).sum().backward()
        optimizer.step()
    assert float(score.detach()) == pytest.approx(p_real / (p_real + p_fake), abs=1e-6)


def test_relativistic_generator_loss_needs_real_scores():
    with pytest.raises(ValueError, match="real_scores"):
        generator_loss(FAKE, "relativistic")


def test_approximate_r1_of_a_linear_critic_is_its_squared_slope():
    slope, std = 3.0, 0.01
    noise = torch.randn(50_000, 1, dtype=torch.float64)
    penalty = approximate_r1(torch.zeros_like(noise), slope * std * noise, std)
    assert float(penalty.mean()) == pytest.approx(slope**2, rel=0.03)
