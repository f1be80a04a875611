"""Classifier-free guidance limited to an interval of noise levels, and rescaled: known answers, and what it costs."""

import pytest
import torch
from pydantic import ValidationError

from presto_core.config.sampling import BaseSampler
from presto_core.diffusion.denoiser import LevelDenoiser, denoise_at
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.samplers.edm import SAMPLERS
from presto_core.samplers.schedule import karras_sigmas
from tests.support.toy_networks import conditions

INTERVAL = (0.5, 5.0)


class CountingDenoiser:
    """A linear denoiser whose conditional rows differ from the others; counts its rows."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x, sigma, cond, budget=None):
        self.rows += len(x)
        shift = torch.where(cond.keep, 1.0, -1.0).to(x.dtype)[:, None, None]
        return (x + shift) / (1 + sigma[:, None, None] ** 2)


def draw(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_rows_inside_the_interval_are_guided_and_the_others_are_not():
    denoise = CountingDenoiser()
    sigma = torch.tensor([0.1, 0.5, 0.6, 5.0, 5.1], dtype=torch.float64)
    x, cond = draw(5), conditions(5)
    limited = make_guided_denoiser(denoise, 3.0, interval=INTERVAL)(x, sigma, cond)
    guided, plain = make_guided_denoiser(denoise, 3.0)(x, sigma, cond), denoise(x, sigma, cond)
    is_guided = [bool(torch.equal(limited[i], guided[i])) for i in range(5)]
    assert is_guided == [False, False, True, True, False]  # the upper level is inside, the lower one is not
    assert all(torch.equal(limited[i], plain[i]) for i in range(5) if not is_guided[i])
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize("sigma", [0.3, 2.0, 40.0])
def test_a_sampler_gets_the_same_estimate_without_evaluating_both(sigma: float):
    x, cond = draw(2), conditions(2)
    denoise = make_guided_denoiser(CountingDenoiser(), 2.0, interval=INTERVAL)
    assert isinstance(denoise, LevelDenoiser)
    per_row = denoise(x, torch.full((2,), sigma, dtype=torch.float64), cond)
    counting = CountingDenoiser()
    estimate = denoise_at(make_guided_denoiser(counting, 2.0, interval=INTERVAL), x, sigma, cond, None)
    assert torch.equal(estimate, per_row)
    assert counting.rows == (4 if sigma == 2.0 else 2)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("interval", [None, INTERVAL, (0.0, 1e9), (1e8, 1e9)])
def test_evaluations_with_an_interval_are_counted_before_sampling(name, interval):
    how = BaseSampler(sampler=name, steps=9, guidance_scale=2.0, guidance_interval=interval)
    sigmas, counting = karras_sigmas(9, sigma_min=0.002, sigma_max=80.0, rho=7.0), CountingDenoiser()
    SAMPLERS[name](make_guided_denoiser(counting, 2.0, interval=interval), draw(1), sigmas, conditions(1), None)
    assert counting.rows == how.count_evaluations(sigmas.tolist())
    if interval == INTERVAL:
        assert how.nfe / 2 < counting.rows < how.nfe


@pytest.mark.parametrize("phi", [0.25, 0.7, 1.0])
def test_rescaling_takes_the_std_of_each_row_back(phi: float):
    x, sigma, cond = draw(4), torch.full((4,), 2.0, dtype=torch.float64), conditions(4)

    def denoise(x, sigma, cond, budget=None):
        return torch.where(cond.keep, x.new_tensor(1.3), x.new_tensor(0.4))[:, None, None] * x

    plain, guided = denoise(x, sigma, cond), make_guided_denoiser(denoise, 3.0)(x, sigma, cond)
    rescaled = make_guided_denoiser(denoise, 3.0, rescale=phi)(x, sigma, cond)
    # 0.4 + 3 (1.3 - 0.4) = 3.1 times x: its deviation goes back to 1.3 times, by the share phi
    torch.testing.assert_close(rescaled, (phi * 1.3 + (1 - phi) * 3.1) * x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(guided, 3.1 * x, rtol=1e-12, atol=1e-12)
    if phi == 1:
        torch.testing.assert_close(rescaled.std(dim=(1, 2)), plain.std(dim=(1, 2)), rtol=1e-12, atol=0)


def test_without_rescaling_the_bits_stay():
    x, sigma, cond = draw(2), torch.ones(2, dtype=torch.float64), conditions(2)
    denoise = CountingDenoiser()
    assert torch.equal(
        make_guided_denoiser(denoise, 1.5, rescale=0.0)(x, sigma, cond),
        make_guided_denoiser(denoise, 1.5)(x, sigma, cond),
    )


def test_settings_without_restraints_are_written_as_before_there_were_any():
    assert BaseSampler(guidance_scale=0.0).model_dump() == {"sampler": "dpmpp_2m", "steps": 40, "guidance_scale": 0.0}
    limited = BaseSampler(guidance_scale=2.0, guidance_interval=(0.0, 5.0), guidance_rescale=0.7)
    assert BaseSampler.model_validate_json(limited.model_dump_json()) == limited
    assert limited.guidance_label == " w=2 at 0-5 rescale 0.7"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_scale": 2, "guidance_interval": [5, 0.3]}, r"guidance_interval=\[5, 0.3\] must rise"),
        ({"guidance_interval": [0.3, 5]}, "guidance_interval has no effect with guidance_scale=1"),
        ({"guidance_scale": 0, "guidance_rescale": 0.5}, "guidance_rescale has no effect with guidance_scale=0"),
        ({"guidance_scale": 2, "guidance_rescale": 1.5}, "less than or equal to 1"),
        ({"guidance_scale": 2, "guidance_interval": [float("nan"), 5]}, "finite"),
    ],
)
def test_guidance_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        BaseSampler.model_validate(fields)
