"""Editing by any sampler, on Gaussian latents whose conditional mean and covariance are known: all in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.samplers.edm import SAMPLERS
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.inpainting import make_inpainting_denoiser, mask_frames, shift_noise
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas, pick_level
from presto_core.samplers.windows import cover_circle, cover_line, make_windowed_denoiser

LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
FRAMES, CORRELATION = 16, 0.9
NAMES = [*SAMPLERS, "ping_pong"]
TIME = torch.arange(FRAMES, dtype=torch.float64)
COVARIANCE = CORRELATION ** (TIME[:, None] - TIME).abs()  # of an AR(1) process over frames


def wiener(covariance: Tensor = COVARIANCE) -> Callable[..., Tensor]:
    """The exact denoiser E[x0 | x] = S (S + sigma^2)^-1 x of Gaussian latents [B, C, T]."""

    def denoise(x: Tensor, sigma: Tensor, cond: Any, budget: Any = None) -> Tensor:
        size = x.shape[-1]
        noisy = covariance[:size, :size] + float(sigma[0]) ** 2 * torch.eye(size, dtype=torch.float64)
        return x @ torch.linalg.solve(noisy, covariance[:size, :size])

    return denoise


def draw(batch: int = 1, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sample(name: str, denoise: Any, noise: Tensor, *, steps: int = 6, sigma_max: float = 80.0, budget: Any = None):
    levels = {**LEVELS, "sigma_max": sigma_max}
    if name == "ping_pong":
        rng = torch.Generator().manual_seed(1)
        return ping_pong(denoise, noise, few_step_sigmas(steps, **levels), None, generator=rng, budget=budget)
    return SAMPLERS[name](denoise, noise, karras_sigmas(steps, **levels), None, budget)


def edit(name: str, known: Tensor, made: Tensor, noise: Tensor, *, denoise: Any = None, sigma_max: float = 80.0):
    inner = denoise or wiener()
    start = shift_noise(noise, start=(1 - made) * known, sigma=sigma_max)
    return sample(name, make_inpainting_denoiser(inner, known, made), start, sigma_max=sigma_max)


# --- inpainting


@pytest.mark.parametrize("name", NAMES)
def test_what_is_all_known_comes_back(name: str):
    known = draw(seed=5)
    torch.testing.assert_close(edit(name, known, torch.zeros(FRAMES), draw()), known, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_all_unknown_is_a_free_sample_bit_for_bit(name: str):
    assert torch.equal(edit(name, draw(seed=5), torch.ones(FRAMES), draw()), sample(name, wiener(), draw()))


@pytest.mark.parametrize("name", NAMES)
def test_known_frames_are_noised_anew_at_every_level(name: str):
    """An ODE sampler keeps its noise: x = known + sigma z at each evaluation; ping-pong draws it afresh."""
    known, noise, made = draw(seed=5), draw(), mask_frames(FRAMES, [(4, 9)])
    seen = []

    def denoise(x: Tensor, sigma: Tensor, cond: Any, budget: Any = None) -> Tensor:
        seen.append(((x - known) / sigma)[0, 0, made == 0])
        return wiener()(x, sigma, cond)

    result = edit(name, known, made, noise, denoise=denoise)
    torch.testing.assert_close(result[..., made == 0], known[..., made == 0], rtol=0, atol=1e-10)
    z = noise[0, 0, made == 0]
    torch.testing.assert_close(seen[0], z, rtol=0, atol=1e-10)
    for later in seen[1:]:
        assert torch.allclose(later, z, rtol=0, atol=1e-8) == (name != "ping_pong")
        assert 0.3 < float(later.std()) < 2.5


def test_ping_pong_at_one_level_has_the_conditional_mean_and_covariance_of_that_level():
    """b <- D_ba (a + s n) + D_bb (b + s n'): its mean goes to S_ba (S_aa + s^2)^-1 a, its covariance solves a Lyapunov
    equation; without re-noised known frames the mean would be 0."""
    batch, sigma, made = 20_000, 0.3, mask_frames(FRAMES, [(5, 9)]).bool()
    known = draw(seed=5).expand(batch, -1, -1)
    noise = shift_noise(draw(batch), start=known * ~made, sigma=sigma)
    denoise = make_inpainting_denoiser(wiener(), known, made.double())
    levels = torch.full((120,), sigma, dtype=torch.float64)
    b = ping_pong(denoise, noise, levels, None, generator=torch.Generator().manual_seed(1))[:, 0, made]
    s_ba, s_aa = COVARIANCE[made][:, ~made], COVARIANCE[~made][:, ~made]
    eye = torch.eye(len(s_aa), dtype=torch.float64)
    mean = s_ba @ torch.linalg.solve(s_aa + sigma**2 * eye, known[0, 0, ~made])
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(FRAMES, dtype=torch.float64))
    from_b, from_a = gain[made][:, made], gain[made][:, ~made]
    added = sigma**2 * (from_a @ from_a.T + from_b @ from_b.T)
    covariance = torch.zeros_like(added)
    for _ in range(500):
        covariance = from_b @ covariance @ from_b.T + added
    error = float(covariance.diagonal().max().sqrt()) / batch**0.5
    torch.testing.assert_close(b.mean(0), mean, rtol=0, atol=5 * error)
    assert float(mean.abs().max()) > 50 * error
    torch.testing.assert_close(b.T.cov(), covariance, rtol=0.05, atol=0.05 * float(covariance.max()))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_follows_what_is_known(name: str):
    """Made frames beside known ones are nearer to them than frames of free samples are, however few the steps."""
    batch, made = 2000, mask_frames(FRAMES, [(6, FRAMES)])
    known = torch.full((batch, 1, FRAMES), 2.0, dtype=torch.float64)
    beside = edit(name, known, made, draw(batch))[:, 0, 6]
    assert float(beside.mean()) > 0.5  # the true conditional mean is 1.8; of free samples it is 0
    assert abs(float(sample(name, wiener(), draw(batch))[:, 0, 6].mean())) < 0.1


# --- strength


def test_a_strength_is_a_point_of_the_schedule_and_the_rest_of_it_follows():
    assert pick_level(1.0, **LEVELS) == LEVELS["sigma_max"]
    half = {**LEVELS, "sigma_max": pick_level(0.5, **LEVELS)}
    torch.testing.assert_close(few_step_sigmas(4, **half), few_step_sigmas(8, **LEVELS)[4:])
    assert 0.002 < pick_level(0.01, **LEVELS) < pick_level(0.3, **LEVELS) < pick_level(0.9, **LEVELS) < 80


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float):
    with pytest.raises(ValueError, match="strength"):
        pick_level(strength, **LEVELS)


@pytest.mark.parametrize("name", NAMES)
def test_a_weak_edit_changes_little_and_a_strong_one_more(name: str):
    source, distances = draw(200, seed=5), []
    for strength in (0.1, 0.5, 1.0):
        sigma = pick_level(strength, **LEVELS)
        noise = shift_noise(draw(200), start=source, sigma=sigma)
        distances.append(float((sample(name, wiener(), noise, sigma_max=sigma) - source).square().mean()))
    assert distances[0] < 0.05 < distances[1] < distances[2]


# --- windows


@pytest.mark.parametrize(
    "windows",
    [
        cover_line(37, window=16, overlap=6),
        cover_line(17, window=16, overlap=15), cover_line(40, window=16, overlap=1),
        cover_circle(16, window=16),
        cover_circle(41, window=16),
        cover_circle(5, window=16), cover_circle(1, window=16),
    ],
)  # fmt: skip
def test_every_frame_is_covered_and_its_weights_sum_to_one(windows: Any):
    total = torch.zeros(windows.frames, dtype=torch.float64).index_add_(
        0, windows.index.flatten(), windows.weights.flatten()
    )
    torch.testing.assert_close(total, torch.ones_like(total))
    assert windows.index.shape[1] == 16
    assert float(windows.weights.min()) > 0


def test_a_denoiser_that_sees_one_frame_at_a_time_does_not_notice_windows():
    white = wiener(torch.eye(16, dtype=torch.float64))
    x, sigma = draw(frames=37), torch.ones(1, dtype=torch.float64)
    for windows in (cover_line(37, window=16, overlap=6), cover_circle(37, window=16)):
        torch.testing.assert_close(make_windowed_denoiser(white, windows)(x, sigma, None), x / 2)


def test_one_window_is_the_denoiser_itself():
    denoise = wiener()
    assert make_windowed_denoiser(denoise, cover_line(9, window=16, overlap=6)) is denoise


def test_each_window_has_its_own_prompt_and_the_overlap_blends_them():
    windows = cover_line(28, window=16, overlap=4)
    cond = make_cond([1.0, 3.0])

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Any = None) -> Tensor:
        assert cond is not None
        return cond.tempo_bpm[:, None, None].expand(x.shape).double()

    x0 = make_windowed_denoiser(denoise, windows)(draw(frames=28), torch.ones(1), cond)[0, 0]
    assert (x0[:12] == 1).all()
    assert (x0[16:] == 3).all()
    assert (x0[12:16].diff() > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_circle_has_no_end(name: str):
    """The step from the last frame to the first is as large as any other; of a line it is that of unrelated frames."""
    frames = 24
    index = torch.arange(frames, dtype=torch.float64)
    line = wiener(CORRELATION ** (index[:, None] - index).abs())
    rows = []
    for denoise in (make_windowed_denoiser(wiener(), cover_circle(frames, window=FRAMES)), line):
        ends, steps = [], []
        for seed in range(60):
            x = sample(name, denoise, draw(frames=frames, seed=seed), steps=12)[0, 0]
            ends.append(float((x[0] - x[-1]).square()))
            steps.append(float(x.diff().square().mean()))
        rows.append(sum(ends) / sum(steps))
    circle, open_line = rows
    assert circle < 2
    assert open_line > 3


# --- budgets and guidance


@pytest.mark.parametrize("name", NAMES)
def test_edits_in_windows_run_the_blocks_of_each_noise_level(name: str):
    seen = []

    def denoise(x: Tensor, sigma: Tensor, cond: Any, budget: Any = None) -> Tensor:
        seen.append((float(sigma[0]), budget))
        return wiener()(x, sigma, cond)

    windows = make_windowed_denoiser(denoise, cover_line(30, window=FRAMES, overlap=6))
    known = draw(frames=30, seed=5)
    edited = make_inpainting_denoiser(windows, known, mask_frames(30, [(10, 20)]))
    sample(name, edited, shift_noise(draw(frames=30), start=known, sigma=80.0), budget=lambda s: 2 if s > 1 else 5)
    assert {blocks for _, blocks in seen} == {2, 5}
    assert all(blocks == (2 if sigma > 1 else 5) for sigma, blocks in seen)


def make_cond(tempi: list[float]) -> Conditioning:
    count = len(tempi)
    return Conditioning(
        pooled=torch.zeros(count, 2), tokens=torch.zeros(count, 3, 2), mask=torch.ones(count, 3, dtype=torch.bool),
        tempo_bpm=torch.tensor(tempi), key=torch.full((count,), UNKNOWN_KEY), keep=torch.ones(count, dtype=torch.bool),
    )  # fmt: skip


def test_a_negative_prompt_is_what_guidance_moves_away_from():
    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Any = None) -> Tensor:
        assert cond is not None
        return torch.where(cond.keep, cond.tempo_bpm, 0.0)[:, None, None].expand(x.shape)

    x, sigma, cond = torch.zeros(2, 1, 4), torch.ones(2), make_cond([3.0, 5.0])
    away = make_guided_denoiser(denoise, 2.0, negative=make_cond([1.0]))
    assert away(x, sigma, cond)[:, 0, 0].tolist() == [5.0, 9.0]  # 1 + 2 (c - 1)
    assert make_guided_denoiser(denoise, 2.0)(x, sigma, cond)[:, 0, 0].tolist() == [6.0, 10.0]
    assert make_guided_denoiser(denoise, 0.0, negative=make_cond([1.0]))(x, sigma, cond)[:, 0, 0].tolist() == [1, 1]
