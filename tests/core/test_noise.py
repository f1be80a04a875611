"""Noise distributions: closed forms, quantile and cdf as inverses, sampling, serialisation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from presto_core.config.noise import (
    GridNoise,
    KarrasNoise,
    LogNormalNoise,
    LogUniformNoise,
    MixtureNoise,
    NoiseConfig,
    NoiseDistribution,
    TruncatedNoise,
)
from presto_core.diffusion.noise import snr_db
from presto_core.errors import UserError
from presto_core.samplers.schedule import few_step_sigmas

CONTINUOUS = {
    "lognormal": LogNormalNoise(mean=-0.4, std=1.0),
    "karras": KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    "log_uniform": LogUniformNoise(sigma_min=0.01, sigma_max=50.0),
    "truncated": TruncatedNoise(base=LogNormalNoise(mean=-1.2, std=1.2), sigma_low=0.05, sigma_high=3.0),
    "mixture": MixtureNoise(
        components=(LogNormalNoise(mean=-0.4, std=1.0), KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0)),
        weights=(1.0, 3.0),
    ),
}
GRID = GridNoise(num_steps=4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
ALL = CONTINUOUS | {"grid": GRID}


def test_lognormal_quantiles_equal_scipy():
    u = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    expected = stats.lognorm(s=1.0, scale=math.exp(-0.4)).ppf(u.numpy())
    torch.testing.assert_close(
        LogNormalNoise(mean=-0.4, std=1.0).quantile(u), torch.from_numpy(expected), rtol=1e-10, atol=0
    )


def test_karras_quantiles_equal_the_edm_formula():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    # EDM's u runs from sigma_max down, ours is the probability below
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (a + (1 - u) * (b - a)) ** 7
    torch.testing.assert_close(
        KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0).quantile(u), expected, rtol=1e-12, atol=0
    )


def test_the_gap_between_the_two_families_follows_the_method():
    high = torch.tensor([5.0], dtype=torch.float64)
    assert float(1 - LogNormalNoise(mean=-0.4, std=1.0).cdf(high)) == pytest.approx(0.0222, abs=5e-4)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert float(KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0).quantile(half)) == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_cdf_inverts_quantile(name: str):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(CONTINUOUS[name].cdf(CONTINUOUS[name].quantile(u)), u, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_samples_follow_the_cdf(name: str):
    """Kolmogorov-Smirnov distance of 20,000 samples to the cdf, evaluated at quantiles."""
    draws = ALL[name].sample(20_000, generator=torch.Generator().manual_seed(0)).double().sort().values
    assert draws.dtype == torch.float64
    assert (draws > 0).all()
    at = ALL[name].quantile(torch.linspace(0.05, 0.95, 19, dtype=torch.float64)) * (1 + 1e-6)
    empirical = torch.searchsorted(draws, at).double() / len(draws)
    assert (empirical - ALL[name].cdf(at)).abs().max() < 0.012  # 1.63 / sqrt(n): the 1 % level


def test_samples_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = GRID.sample(8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert torch.equal(first, GRID.sample(8, generator=torch.Generator().manual_seed(3)))


def test_grid_is_the_few_step_schedule():
    levels = few_step_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    torch.testing.assert_close(GRID.levels().flip(0), levels, rtol=1e-12, atol=0)
    draws = GRID.sample(1000, generator=torch.Generator().manual_seed(0))
    assert set(draws.tolist()) == set(levels.float().tolist())


@given(low=st.floats(0.01, 1.0), width=st.floats(1.5, 20.0), u=st.floats(0.0, 1.0))
def test_truncation_keeps_to_its_interval(low: float, width: float, u: float):
    sigma = TruncatedNoise(base=LogNormalNoise(mean=-0.4, std=1.0), sigma_low=low, sigma_high=low * width).quantile(
        torch.tensor([u], dtype=torch.float64)
    )
    assert low <= float(sigma) <= low * width


def test_truncation_without_mass_is_refused():
    with pytest.raises(UserError, match="keeps nothing"):
        TruncatedNoise(base=KarrasNoise(sigma_min=0.1, sigma_max=1.0, rho=7.0), sigma_low=5.0, sigma_high=6.0).quantile(
            torch.tensor([0.5])
        )


def test_mixture_share_of_each_component():
    mixture = MixtureNoise(
        components=(LogUniformNoise(sigma_min=0.01, sigma_max=0.1), LogUniformNoise(sigma_min=1.0, sigma_max=10.0)),
        weights=(1.0, 3.0),
    )
    draws = mixture.sample(40_000, generator=torch.Generator().manual_seed(0))
    assert float((draws < 0.5).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", ALL)
def test_config_round_trip(name: str):
    section = TypeAdapter(NoiseConfig).validate_python(ALL[name].to_config())
    rebuilt: NoiseDistribution = section
    assert rebuilt == ALL[name]


def test_snr_is_zero_decibel_where_noise_equals_signal():
    torch.testing.assert_close(snr_db(torch.tensor([0.5, 5.0, 0.05]), 0.5), torch.tensor([0.0, -20.0, 20.0]))
