"""An independent, plain DMD2 iteration, which `iteration.py` compares Presto-S with.

Written from the papers (DMD2, arXiv 2405.14867; Presto, arXiv 2410.05167) in eager PyTorch with its default optimiser.
It shares network, discriminator head and settings with Presto-S, and no code of its training, losses or denoiser. The
order of draws is that of Presto-S, so that the same seed gives the same losses (tests/core/test_independent_dmd2.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from presto_core.config.noise import KarrasNoise, LogNormalNoise, NoiseDistribution
from presto_core.config.sections import OptimConfig, StepsConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.network import Network
from presto_core.training.state import Batch

Features = Literal["fake_score", "shared", "teacher"]


class PlainDmd2:
    """Real score, fake score, generator and discriminator head, with their updates.

    Args:
        teacher: raw network under EDM preconditioning for latents of standard deviation 1; it is copied.
        features: activations that the head reads. `fake_score`: of the fake score at noise of its own, as in both
            papers. `shared`: of the fake score in the passes that estimate scores, as with steps.shared_taps.
            `teacher`: of the frozen real score in those passes, as in the default of FastGen (NVlabs).
    """

    def __init__(self, config: StepsConfig, teacher: Network, head: nn.Module, *, features: Features = "fake_score"):
        if config.gan.kind != "lsgan" or config.gan.weight_mode != "absolute" or config.guidance_scale != 1:
            raise ValueError("the plain iteration has least squares with a constant weight, and no guidance")
        self.config, self.features, self.head = config, features, copy.deepcopy(head).requires_grad_(True)
        self.real, self.fake, self.generator, self.ema = (copy.deepcopy(teacher) for _ in range(4))
        self.real.requires_grad_(False)
        self.ema.requires_grad_(False)
        self.tap = (config.gan.taps or (teacher.depth // 2,))[0]
        self.generator_optimizer = _make_adamw(self.generator, config.generator_optim)
        self.critic_optimizers = [
            (self.fake, _make_adamw(self.fake, config.fake_optim), config.fake_optim),
            (self.head, _make_adamw(self.head, config.head_optim), config.head_optim),
        ]
        self.generator_updates = 0

    def iterate(self, next_batch: Callable[[], Batch], rng: Callable[[], torch.Generator]) -> None:
        """Run the critic updates, and then the update of the generator, each on a fresh batch."""
        for _ in range(self.config.fake_updates_per_generator_update):
            self.update_critic(next_batch(), rng())
        self.update_generator(next_batch(), rng())

    def update_critic(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Update fake score and head; return their losses."""
        config, x, cond = self.config, batch.x0, batch.cond
        sigma = draw_sigma(config.p_gen, len(x), rng)
        with torch.no_grad():
            generated = denoise(self.generator, add_noise(x, sigma, rng), sigma, cond)

        sigma = draw_sigma(config.p_dsm, len(x), rng)
        noisy = add_noise(generated, sigma, rng)
        estimate, fake_features = self._denoise_with_features(self.fake, noisy, sigma, cond)
        weight = (sigma**2 + 1) / sigma**2  # of EDM, with sigma_data = 1
        dsm = (weight * (estimate - generated).square().mean(dim=(1, 2))).mean()

        if self.features == "fake_score":
            sigma_real, sigma_fake = (draw_sigma(config.p_gan, len(x), rng) for _ in range(2))
            noisy_real, noisy_fake = add_noise(x, sigma_real, rng), add_noise(generated, sigma_fake, rng)
            real_scores = self.head([self._extract_features(self.fake, noisy_real, sigma_real, cond)])
            fake_scores = self.head([self._extract_features(self.fake, noisy_fake, sigma_fake, cond)])
        else:
            sigma_real = draw_sigma(config.p_gan, len(x), rng)
            noisy_real = add_noise(x, sigma_real, rng)
            net = self.fake if self.features == "shared" else self.real
            real_features = self._extract_features(net, noisy_real, sigma_real, cond)
            if self.features == "teacher":
                fake_features = self._extract_features(net, noisy, sigma, cond)
            real_scores, fake_scores = self.head([real_features]), self.head([fake_features])
        gan = (real_scores - 1).square().mean() + fake_scores.square().mean()

        (dsm + config.gan.fake_score_weight * gan).backward()
        for module, optimizer, settings in self.critic_optimizers:
            nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        return {"dsm_loss": dsm.detach(), "discriminator_loss": gan.detach()}

    def update_generator(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Update the generator and its moving average; return its losses."""
        config, x, cond = self.config, batch.x0, batch.cond
        sigma = draw_sigma(config.p_gen, len(x), rng)
        generated = denoise(self.generator, add_noise(x, sigma, rng), sigma, cond)
        self.fake.requires_grad_(False)
        self.head.requires_grad_(False)

        sigma = draw_sigma(config.p_dmd, len(x), rng)
        noisy = add_noise(generated, sigma, rng)
        source = self.real if self.features == "teacher" else self.fake
        if self.features == "fake_score":
            with torch.no_grad():
                real, fake = (denoise(net, noisy, sigma, cond) for net in (self.real, self.fake))
            sigma = draw_sigma(config.p_gan, len(x), rng)
            features = self._extract_features(source, add_noise(generated, sigma, rng), sigma, cond)
        else:
            estimate, features = self._denoise_with_features(source, noisy, sigma, cond)
            with torch.no_grad():
                other = denoise(self.fake if source is self.real else self.real, noisy, sigma, cond)
            real, fake = (estimate, other) if source is self.real else (other, estimate)
        with torch.no_grad():
            distance = (generated - real).abs().mean(dim=(1, 2), keepdim=True) + 1e-6
            gradient = (fake - real) / distance  # DMD (Yin et al. 2024), eq. 8
        dmd = 0.5 * (generated - (generated - gradient).detach()).square().mean()
        gan = (self.head([features]) - 1).square().mean()

        (dmd + config.gan.generator_weight * gan).backward()
        self.fake.requires_grad_(True)
        self.head.requires_grad_(True)
        nn.utils.clip_grad_norm_(self.generator.parameters(), config.generator_optim.max_grad_norm)
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()
        self._update_average()
        return {"dmd_loss": dmd.detach(), "gan_loss": gan.detach()}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.generator_updates) / (10 + self.generator_updates))
        for average, weight in zip(self.ema.parameters(), self.generator.parameters()):
            average.lerp_(weight, 1 - decay)
        self.generator_updates += 1

    def _denoise_with_features(
        self, net: Network, x: Tensor, sigma: Tensor, cond: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Return the denoised estimate, and the activations [B, D, N] after the tapped block."""
        s = sigma[:, None, None]
        total = s**2 + 1
        raw, features = net(x / total.sqrt(), sigma.log() / 4, cond, taps=(self.tap,), with_output=True)
        return x / total + s / total.sqrt() * raw, features[0]

    def _extract_features(self, net: Network, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Return the activations [B, D, N] after the tapped block; later blocks do not run."""
        c_in = (1 / (sigma**2 + 1).sqrt())[:, None, None]
        features: list[Tensor] = net(c_in * x, sigma.log() / 4, cond, taps=(self.tap,))
        return features[0]


def denoise(net: Network, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """EDM (Karras et al. 2022), eq. 7, with sigma_data = 1."""
    s = sigma[:, None, None]
    total = s**2 + 1
    estimate: Tensor = x / total + s / total.sqrt() * net(x / total.sqrt(), sigma.log() / 4, cond)
    return estimate


def draw_sigma(p: NoiseDistribution, rows: int, rng: torch.Generator) -> Tensor:
    """Draw noise levels [rows] from one of the paper's two distributions."""
    u = torch.rand(rows, generator=rng, dtype=torch.float64)
    if isinstance(p, LogNormalNoise):
        return (p.mean + p.std * torch.special.ndtri(u)).exp().to(torch.get_default_dtype())
    if isinstance(p, KarrasNoise):
        low, high = p.sigma_min ** (1 / p.rho), p.sigma_max ** (1 / p.rho)
        return ((low + u * (high - low)) ** p.rho).to(torch.get_default_dtype())
    raise ValueError(f"the plain iteration has no distribution {type(p).__name__}")


def add_noise(x: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
    return x + sigma[:, None, None] * torch.randn(x.shape, generator=rng, dtype=x.dtype)


def _make_adamw(net: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    if config.warmup_steps or config.decay != "constant":
        raise ValueError("the plain iteration has a constant learning rate")
    return torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
