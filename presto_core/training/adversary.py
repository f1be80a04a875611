"""The adversarial half of Presto-S: a discriminator head on the fake score's activations (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from presto_core.config.sections import GanConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise
from presto_core.diffusion.noise import NoiseDistribution
from presto_core.losses.gan import approximate_r1, discriminator_loss, generator_loss
from presto_core.training.parallel import Parallel
from presto_core.training.state import Batch


class Adversary:
    """Judges latents noised by p_GAN.

    Args:
        taps: blocks of the fake score whose activations are judged.
        fake_score: denoiser whose weights a generator update reads; `trained_fake_score` and `trained_head` are the
            same weights behind the averaging of gradients over workers.
    """

    def __init__(
        self,
        config: GanConfig,
        p_gan: NoiseDistribution,
        *,
        taps: tuple[int, ...],
        fake_score: EDMDenoiser,
        trained_fake_score: EDMDenoiser,
        head: nn.Module,
        trained_head: nn.Module,
        parallel: Parallel,
    ) -> None:
        self.config, self.p_gan, self.taps, self.parallel = config, p_gan, taps, parallel
        self.fake_score, self.head = fake_score, head
        self.trained_fake_score, self.trained_head = trained_fake_score, trained_head

    def discriminator_loss(self, x0: Tensor, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D on real latents and generated ones x0 [B, C, T], each noised by p_GAN and judged in one pass."""
        both = torch.cat([batch.x0, x0])
        sigma = self.p_gan.sample(len(both), generator=rng, device=both.device)
        noisy, cond = add_noise(both, sigma, generator=rng), Conditioning.cat([batch.cond, batch.cond])
        scores = self.trained_head(self.trained_fake_score.features(noisy, sigma, cond, taps=self.taps))
        real_scores, fake_scores = scores.chunk(2)
        loss = discriminator_loss(real_scores, fake_scores, self.config.kind).mean()
        metrics = {
            "discriminator_loss": loss.detach(),
            "d_real": real_scores.detach().mean(),
            "d_fake": fake_scores.detach().mean(),
        }
        if self.config.r1_weight:
            penalty = self._r1(noisy[: len(x0)], sigma[: len(x0)], batch, real_scores, rng)
            loss, metrics["r1"] = loss + self.config.r1_weight * penalty, penalty.detach()
        return loss, metrics

    def _r1(self, noisy: Tensor, sigma: Tensor, batch: Batch, real_scores: Tensor, rng: torch.Generator) -> Tensor:
        """Penalty on how fast the score of noised real latents changes."""
        std = self.config.r1_std
        nudged = add_noise(noisy, torch.full_like(sigma, std), generator=rng)
        features = self.trained_fake_score.features(nudged, sigma, batch.cond, taps=self.taps)
        return approximate_r1(real_scores, self.trained_head(features), std).mean()

    def gradient(self, x0: Tensor, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """dL_G/dx0 [B, C, T]; the critics' weights take part without a graph of their own."""
        leaf = x0.clone().requires_grad_()
        sigma = self.p_gan.sample(len(x0), generator=rng, device=x0.device)
        with frozen(self.fake_score.net, self.head):
            noisy = add_noise(leaf, sigma, generator=rng)
            features = self.fake_score.features(noisy, sigma, batch.cond, taps=self.taps)
            real_scores = self._real_scores(batch, rng) if self.config.kind == "relativistic" else None
            loss = generator_loss(self.head(features), self.config.kind, real_scores).mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, {"gan_loss": loss.detach(), "gan_grad_norm": gradient.norm()}

    @torch.no_grad()
    def _real_scores(self, batch: Batch, rng: torch.Generator) -> Tensor:
        sigma = self.p_gan.sample(len(batch.x0), generator=rng, device=batch.x0.device)
        noisy = add_noise(batch.x0, sigma, generator=rng)
        return self.head(self.fake_score.features(noisy, sigma, batch.cond, taps=self.taps))

    def weight(self, dmd: Tensor, adversarial: Tensor) -> Tensor:
        """nu_1, or nu_1 |dL_DMD/dx0| / |dL_G/dx0| with norms over the joined batch of all workers."""
        nu = torch.tensor(self.config.generator_weight, device=dmd.device)
        if self.config.weight_mode == "absolute":
            return nu
        squares = self.parallel.average(torch.stack([dmd.square().sum(), adversarial.square().sum()]))
        return nu * (squares[0] / squares[1].clamp(min=1e-20)).sqrt()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Parameters without gradient inside the block, so that no graph is kept for them."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
