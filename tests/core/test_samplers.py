"""Samplers on Gaussian data, whose probability-flow ODE has an exact solution."""

import math
from typing import Any

import pytest
import torch

from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.diffusion.denoiser import full_sigma
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.samplers.edm import SAMPLERS
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas, list_few_step_levels, start_schedule_at
from tests.support.toy_networks import conditions

STD, MEAN, SIGMA_MAX = 0.6, 0.3, 20.0


def gaussian_denoiser(x, sigma, cond, budget=None):
    """E[x0 | x] for x0 ~ N(MEAN, STD^2)."""
    s = sigma[:, None, None].double()
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def exact_end(noise: torch.Tensor) -> torch.Tensor:
    """Return the ODE's solution from x = SIGMA_MAX * noise: MEAN + (x - MEAN) STD / sqrt(STD^2 + SIGMA_MAX^2)."""
    return MEAN + (SIGMA_MAX * noise - MEAN) * STD / math.sqrt(STD**2 + SIGMA_MAX**2)


def error(sampler: str, steps: int) -> float:
    noise = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 64)
    sigmas = karras_sigmas(steps, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)
    sample: Any = SAMPLERS[sampler]
    return float((sample(gaussian_denoiser, noise, sigmas, None) - exact_end(noise)).abs().max())


# the last step, to sigma = 0, is exact up to sigma_min^2, which is negligible at these step counts
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler: str, order: int):
    observed = math.log2(error(sampler, 128) / error(sampler, 256))
    assert observed == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_steps_reach_the_exact_solution(sampler: str):
    assert error(sampler, 512) < (2e-2 if sampler == "euler" else 1e-4)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("name", "evaluations"), [("euler", 5), ("heun", 9), ("dpmpp_2m", 5)])
def test_evaluations_a_sample_costs(name: Any, evaluations: int, guidance_scale: float):
    rows = 0

    def denoise_and_count(x, sigma, cond, budget=None):
        nonlocal rows
        rows += len(x)
        return gaussian_denoiser(x, sigma, cond)

    sigmas = karras_sigmas(5, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)
    denoise = make_guided_denoiser(denoise_and_count, guidance_scale)
    sample: Any = SAMPLERS[name]
    sample(denoise, torch.zeros(1, 1, 1, dtype=torch.float64), sigmas, conditions(1))
    assert rows == BaseSampler(sampler=name, steps=5, guidance_scale=guidance_scale).nfe
    assert rows == evaluations * (2 if guidance_scale == 2 else 1)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "ping_pong"])
def test_each_evaluation_runs_the_blocks_of_its_noise_level(sampler: str):
    seen = []

    def denoise(x, sigma, cond, budget=None):
        seen.append((float(sigma[0]), budget))
        return gaussian_denoiser(x, sigma, cond)

    def budget(sigma: float) -> int:
        return 2 if sigma > 1 else 5

    noise = torch.zeros(2, 1, 1, dtype=torch.float64)
    if sampler == "ping_pong":
        sigmas = few_step_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
        ping_pong(denoise, noise, sigmas, None, generator=torch.Generator().manual_seed(0), budget=budget)
    else:
        sigmas = karras_sigmas(6, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)
        SAMPLERS[sampler](denoise, noise, sigmas, None, budget)
    assert {kept for _, kept in seen} == {2, 5}
    assert all(kept == budget(sigma) for sigma, kept in seen)


def test_schedule_ends():
    sigmas = karras_sigmas(10, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    torch.testing.assert_close(sigmas[[0, -2, -1]], torch.tensor([80.0, 0.002, 0.0], dtype=torch.float64))
    assert (sigmas.diff() < 0).all()


def test_few_steps_leave_out_the_level_where_nothing_happens():
    sigmas = few_step_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert sigmas[0] == pytest.approx(80.0)
    assert sigmas[-1] > 0.1
    assert few_step_sigmas(1, sigma_min=0.002, sigma_max=80.0, rho=7.0).tolist() == pytest.approx([80.0])


@pytest.mark.parametrize(
    ("steps", "low", "high", "match"), [(0, 0.1, 1.0, "num_steps=0"), (3, 2.0, 1.0, "sigma_min=2.0")]
)
def test_impossible_schedules_are_refused(steps: int, low: float, high: float, match: str):
    with pytest.raises(ValueError, match=match):
        karras_sigmas(steps, sigma_min=low, sigma_max=high, rho=7.0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_ping_pong_visits_its_levels_and_returns_the_last_estimate(steps: int):
    seen = []

    def generate(x, sigma, cond, budget=None):
        seen.append(float(sigma[0]))
        return torch.full_like(x, len(seen))

    sigmas = few_step_sigmas(steps, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    out = ping_pong(generate, torch.randn(2, 3, 4), sigmas, None, generator=torch.Generator().manual_seed(0))
    assert seen == pytest.approx(sigmas.tolist())
    assert torch.equal(out, torch.full((2, 3, 4), float(steps)))


def test_ping_pong_with_exact_posterior_sampler_keeps_the_distribution():
    """With a generator that draws from p(x0 | x), ping-pong samples the data distribution exactly."""
    rng = torch.Generator().manual_seed(0)

    def posterior(x, sigma, cond, budget=None):
        s = sigma[:, None, None].double()
        variance = 1 / (1 / STD**2 + 1 / s**2)
        eps = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return variance * (MEAN / STD**2 + x / s**2) + variance.sqrt() * eps

    noise = torch.randn(4000, 1, 1, generator=rng, dtype=torch.float64)
    sigmas = few_step_sigmas(4, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)
    out = ping_pong(posterior, noise, sigmas, None, generator=rng)
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(out.std()) == pytest.approx(STD, rel=0.04)
    assert full_sigma(2.0, noise).dtype == torch.float64


def test_an_edit_visits_the_lowest_of_listed_levels():
    listed = ScheduleConfig(sigmas=(50.0, 10.0, 2.0, 0.5))
    for strength, expected in ((1.0, 4), (0.75, 3), (0.6, 3), (0.5, 2), (0.01, 1)):
        schedule, steps = start_schedule_at(strength, listed, 4)
        assert steps == expected
        assert list_few_step_levels(steps, schedule).tolist() == list(listed.sigmas[-expected:])
        assert schedule.highest == listed.sigmas[-expected]
    curve, steps = start_schedule_at(0.5, ScheduleConfig(), 4)
    assert steps == 4
    assert list_few_step_levels(4, curve)[0] == pytest.approx(curve.highest)
