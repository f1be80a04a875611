"""Preconditions: identities in float64 of every kind, against closed forms and diffusers' own schedulers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from presto_core.config.noise import LevelsNoise, LogNormalNoise, TimeUniformNoise
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.diffusion.preconditions import PRECONDITIONS, Edm, Precondition, VCosine, read_precondition
from presto_core.errors import UserError
from presto_core.losses.dsm import dsm_loss
from tests.support.toy_networks import conditions

SIGMAS = (1e-3, 0.03, 0.3, 1.0, 7.0, 80.0, 500.0, 1e4)
KEPT = tuple(torch.linspace(1, 0, 1002, dtype=torch.float64)[1:-1].square().tolist())  # falling, in (0, 1)


def make_precondition(kind: str) -> Precondition:
    numbers = {"edm": {"sigma_data": 0.7}, "flow": {"time_scale": 1000.0}}.get(kind, {})
    return read_precondition({"kind": kind, **numbers, **({"alphas_cumprod": KEPT} if "table" in kind else {})})


def draw_pair() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 8, 12, generator=rng, dtype=torch.float64) for _ in range(2))
    return x0, eps


# what a perfect network of each kind returns for known data and noise
TARGETS = {
    "edm": lambda x0, eps, s: (x0 - 0.49 / (s**2 + 0.49) * (x0 + s * eps)) * math.sqrt(s**2 + 0.49) / (0.7 * s),
    "v_cosine": lambda x0, eps, s: (eps - s * x0) / math.sqrt(1 + s**2),
    "flow": lambda x0, eps, s: eps - x0,
    "flow_reversed": lambda x0, eps, s: x0 - eps,
    "epsilon_table": lambda x0, eps, s: eps,
    "v_table": lambda x0, eps, s: (eps - s * x0) / math.sqrt(1 + s**2),
    "sample_table": lambda x0, eps, s: x0,
}


@pytest.mark.parametrize("kind", PRECONDITIONS)
def test_a_perfect_network_gives_the_clean_latents_back(kind: str):
    (x0, eps), precondition = draw_pair(), make_precondition(kind)
    for sigma in SIGMAS:
        c_skip, c_out, c_in, time = precondition(torch.full((3,), sigma, dtype=torch.float64))
        x = x0 + sigma * eps
        x0_hat = c_skip * x + c_out * TARGETS[kind](x0, eps, sigma)
        # x itself is rounded to sigma 1e-16, which no formula can undo
        assert float((x0_hat - x0).abs().max() / max(1, sigma)) <= 1e-13 * float(x0.abs().max())
        assert c_in.dtype == time.dtype == torch.float64


@pytest.mark.parametrize("kind", PRECONDITIONS)
def test_the_loss_weight_makes_the_error_of_x0_the_error_of_the_network(kind: str):
    (x0, eps), precondition = draw_pair(), make_precondition(kind)
    for sigma in (0.03, 1.0, 80.0):
        level = torch.full((3,), sigma, dtype=torch.float64)
        c_skip, c_out, _, _ = precondition(level)
        target, estimate = TARGETS[kind](x0, eps, sigma), torch.sin(eps)
        x0_hat = c_skip * (x0 + sigma * eps) + c_out * estimate
        own = (estimate - target).square().mean(dim=(1, 2))
        weighted = precondition.loss_weight(level) * (x0_hat - x0).square().mean(dim=(1, 2))
        torch.testing.assert_close(weighted, own, rtol=1e-11 if sigma < 80 else 1e-9, atol=0)
        torch.testing.assert_close(dsm_loss(x0_hat, x0, level, precondition).double(), own, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", PRECONDITIONS)
def test_the_level_at_a_time_is_the_inverse_of_the_time_and_cards_keep_it(kind: str):
    precondition = make_precondition(kind)
    sigma = torch.tensor([0.05, 0.5, 1.0, 5.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(precondition.sigma_at(precondition(sigma).time), sigma, rtol=1e-12, atol=0)
    assert read_precondition(json.loads(json.dumps(precondition.to_dict()))) == precondition


@pytest.mark.parametrize("kind", PRECONDITIONS)
def test_coefficients_stay_fp32_for_lower_precision(kind: str):
    for dtype in (torch.bfloat16, torch.float32):
        assert {c.dtype for c in make_precondition(kind)(torch.ones(2, dtype=dtype))} == {torch.float32}


def test_edm_is_bit_identical_to_the_formula_that_models_were_trained_with():
    sigma, d = torch.logspace(-3, 2, 64), 0.7
    s = sigma[:, None, None]
    total = s**2 + d**2
    expected = (d**2 / total, s * d / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4)
    for ours, formula in zip(Edm(d)(sigma), expected, strict=True):
        assert torch.equal(ours, formula)
    assert torch.equal(Edm(d).loss_weight(sigma), (sigma**2 + d**2) / (sigma * d) ** 2)


def test_v_cosine_is_edm_with_the_sign_and_the_time_of_stable_audio():
    sigma = torch.logspace(-2, 3, 32, dtype=torch.float64)
    ours, edm = VCosine()(sigma), Edm(1.0)(sigma)
    assert torch.equal(ours.c_out, -edm.c_out)
    assert torch.equal(ours.c_in, edm.c_in)
    torch.testing.assert_close(ours.time, 2 / math.pi * (4 * edm.time).exp().atan(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["flow", "flow_reversed"])
def test_flow_agrees_with_the_flow_matching_scheduler_of_diffusers(kind: str):
    from diffusers import FlowMatchEulerDiscreteScheduler

    x0, eps = draw_pair()
    estimate, precondition = torch.sin(3 * eps) + x0, make_precondition(kind)
    for t in (0.02, 0.3, 0.5, 0.9, 0.998):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
        scheduler.set_timesteps(sigmas=[t])
        t = float(scheduler.sigmas[0])  # in fp32
        x_flow = (1 - t) * x0 + t * eps
        velocity = estimate if kind == "flow" else -estimate
        end = scheduler.step(velocity, scheduler.timesteps[0], x_flow).prev_sample.double()
        c_skip, c_out, _, _ = precondition(torch.full((3,), t / (1 - t), dtype=torch.float64))
        ours = c_skip * x_flow / (1 - t) + c_out * estimate
        torch.testing.assert_close(ours, end, rtol=1e-5, atol=1e-6)  # the scheduler computes in fp32
        torch.testing.assert_close(ours, x_flow - t * velocity, rtol=1e-13, atol=1e-13)


def test_table_times_agree_with_the_steps_of_ddpm():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    kept = scheduler.alphas_cumprod.double()
    x0, eps = draw_pair()
    for kind, prediction in (("epsilon_table", "epsilon"), ("v_table", "v_prediction"), ("sample_table", "sample")):
        scheduler.register_to_config(prediction_type=prediction)
        precondition = read_precondition({"kind": kind, "alphas_cumprod": kept.tolist()})
        for step in (0, 1, 300, 999):
            sigma = ((1 - kept[step]) / kept[step]).sqrt().expand(3)
            c_skip, c_out, c_in, time = precondition(sigma)
            x, estimate = x0 + sigma[:, None, None] * eps, torch.sin(eps)
            assert float((time - step).abs().max()) < 1e-6
            expected = c_skip * x + c_out * estimate
            scheduler.register_to_config(clip_sample=False)
            clean = scheduler.step(estimate, step, c_in * x).pred_original_sample
            torch.testing.assert_close(clean.double(), expected, rtol=1e-4, atol=1e-4)  # its table is fp32


@pytest.mark.parametrize("kind", ["v_cosine", "flow", "epsilon_table"])
def test_guidance_of_the_estimate_is_guidance_of_the_network(kind: str):
    class Waves(nn.Module):
        def forward(self, x, time, cond, budget=None):
            return torch.where(cond.keep[:, None, None], torch.sin(x), torch.cos(x))

    precondition, (x0, eps) = make_precondition(kind), draw_pair()
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    guided = make_guided_denoiser(EDMDenoiser(Waves(), precondition), 3.0)(x0 + 2 * eps, sigma, conditions(3))
    c_skip, c_out, c_in, _ = precondition(sigma)
    scaled = c_in * (x0 + 2 * eps)
    raw = scaled.cos() + 3 * (scaled.sin() - scaled.cos())
    torch.testing.assert_close(guided, c_skip * (x0 + 2 * eps) + c_out * raw, rtol=1e-13, atol=1e-13)


def test_noise_over_the_time_of_a_network_has_its_levels():
    u = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    for clock, kind in (("flow", "flow_reversed"), ("cosine", "v_cosine")):
        noise = TimeUniformNoise(clock=clock, time_min=0.1, time_max=0.9)
        time = 0.1 + 0.8 * u
        sigma = noise.quantile(u)
        expected = make_precondition(kind).sigma_at(1 - time if clock == "flow" else time)
        torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(noise.cdf(sigma), u, rtol=1e-12, atol=1e-14)
    # logit t ~ N(m, s^2) in flow time is ln sigma ~ N(m, s^2): no kind of its own
    t = torch.sigmoid(-0.3 + 1.2 * torch.special.ndtri(u))
    torch.testing.assert_close(LogNormalNoise(mean=-0.3, std=1.2).quantile(u), t / (1 - t), rtol=1e-11, atol=0)


def test_a_list_of_levels_is_drawn_evenly():
    noise = LevelsNoise(sigmas=(0.412, 500.0, 2.4, 0.996))
    assert noise.levels().tolist() == [0.412, 0.996, 2.4, 500.0]
    rng = torch.Generator().manual_seed(0)
    drawn, counts = noise.sample(4000, generator=rng).unique(return_counts=True)
    assert len(drawn) == 4
    assert all(abs(count - 1000) < 120 for count in counts.tolist())
    assert noise.cdf(torch.tensor([0.1, 0.412, 1.0, 600.0])).tolist() == [0, 0.25, 0.5, 1]
    with pytest.raises(ValueError, match="twice"):
        LevelsNoise(sigmas=(1.0, 1.0))


def test_unknown_kinds_and_bad_tables_are_refused():
    with pytest.raises(UserError, match="v_sine"):
        read_precondition({"kind": "v_sine"})
    with pytest.raises(UserError, match="None"):
        read_precondition({})
    for table in ((), (0.5,), (0.2, 0.6), (1.5, 0.5), (0.5, 0.0)):
        with pytest.raises(ValueError, match="alphas_cumprod"):
            read_precondition({"kind": "v_table", "alphas_cumprod": table})
