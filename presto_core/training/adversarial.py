"""The adversarial losses of Presto-S: a discriminator head on the fake score's activations (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from presto_core.config.noise import NoiseDistribution
from presto_core.config.sections import GanConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.losses.gan import approximate_r1, discriminator_loss, generator_loss
from presto_core.training.gradient_accumulation import Metrics, MicroBatch


class AdversarialLoss:
    """Losses of generator and discriminator on latents noised by p_GAN.

    Args:
        tap_blocks: blocks of the fake score whose activations the head reads.
        fake_score: denoiser that generator updates read; `trained_fake_score` and `trained_head` are the same weights
            wrapped to average gradients over workers.
    """

    def __init__(
        self,
        config: GanConfig,
        p_gan: NoiseDistribution,
        *,
        tap_blocks: tuple[int, ...],
        fake_score: EDMDenoiser,
        trained_fake_score: EDMDenoiser,
        head: nn.Module,
        trained_head: nn.Module,
    ) -> None:
        self.config, self.p_gan, self.tap_blocks = config, p_gan, tap_blocks
        self.fake_score, self.head = fake_score, head
        self.trained_fake_score, self.trained_head = trained_fake_score, trained_head

    def discriminator_loss(
        self, x0: Tensor, micro_batch: MicroBatch, *, fake_features: list[Tensor] | None = None
    ) -> tuple[Tensor, Metrics]:
        """Return L_D [B] on real latents and generated x0 [B, C, T], each noised by p_GAN, in one forward pass.

        Args:
            fake_features: activations of the fake score on noised x0, if they are known already (steps.shared_taps).
        """
        # L_D = E[(D(x + sigma eps; sigma, c) - 1)^2] + E[D(x0 + sigma' eps'; sigma', c)^2],  sigma, sigma' ~ p_GAN
        batch, row_rng, taps = micro_batch.batch, micro_batch.row_rng, self.tap_blocks
        sigma_real = row_rng.sample_sigma(self.p_gan)
        if fake_features is None:
            sigma_fake = row_rng.sample_sigma(self.p_gan)
            noisy = torch.cat([row_rng.add_noise(batch.x0, sigma_real), row_rng.add_noise(x0, sigma_fake)])
            sigma, cond = torch.cat([sigma_real, sigma_fake]), Conditioning.cat([batch.cond, batch.cond])
            features = self.trained_fake_score.extract_features(noisy, sigma, cond, taps=taps)
        else:
            noisy = row_rng.add_noise(batch.x0, sigma_real)
            real_features = self.trained_fake_score.extract_features(noisy, sigma_real, batch.cond, taps=taps)
            features = [torch.cat(pair) for pair in zip(real_features, fake_features)]
        real_scores, fake_scores = self.trained_head(features).chunk(2)
        loss = discriminator_loss(real_scores, fake_scores, self.config.kind)
        metrics = {
            "discriminator_loss": loss.detach(),
            "d_real": real_scores.detach().mean(dim=1),
            "d_fake": fake_scores.detach().mean(dim=1),
        }
        if self.config.r1_weight:
            penalty = self._r1_penalty(noisy[: len(x0)], sigma_real, micro_batch, real_scores)
            loss, metrics["r1"] = loss + self.config.r1_weight * penalty, penalty.detach()
        return loss, metrics

    def _r1_penalty(self, noisy: Tensor, sigma: Tensor, micro_batch: MicroBatch, real_scores: Tensor) -> Tensor:
        """Return the gradient penalty [B] of the scores at noised real latents."""
        std = self.config.r1_std
        perturbed = micro_batch.row_rng.add_noise(noisy, torch.full_like(sigma, std))
        features = self.trained_fake_score.extract_features(
            perturbed, sigma, micro_batch.batch.cond, taps=self.tap_blocks
        )
        return approximate_r1(real_scores, self.trained_head(features), std)

    def gradient(self, x0: Tensor, micro_batch: MicroBatch) -> tuple[Tensor, Metrics]:
        """Return dL_G/dx0 [B, C, T]; no graph is kept for the weights of fake score and head."""
        leaf, row_rng = x0.clone().requires_grad_(), micro_batch.row_rng
        sigma = row_rng.sample_sigma(self.p_gan)
        with no_param_grads(self.fake_score.net, self.head):
            features = self.fake_score.extract_features(
                row_rng.add_noise(leaf, sigma), sigma, micro_batch.batch.cond, taps=self.tap_blocks
            )
            real_scores = self._real_scores(micro_batch) if self.config.kind == "relativistic" else None
            losses = generator_loss(self.head(features), self.config.kind, real_scores)
            (gradient,) = torch.autograd.grad(losses.mean(), leaf)
        return gradient, {"gan_loss": losses.detach()}

    def estimate_with_features(self, noisy: Tensor, sigma: Tensor, cond: Conditioning) -> tuple[Tensor, list[Tensor]]:
        """Return the fake score's estimate and the activations that the head reads, for a critic update."""
        return self.trained_fake_score.denoise_with_features(noisy, sigma, cond, taps=self.tap_blocks)

    def estimate_with_gradient(
        self, noisy: Tensor, sigma: Tensor, micro_batch: MicroBatch
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Return the fake score's estimate, and dL_G/dx0 from the activations of the same pass (steps.shared_taps).

        Args:
            noisy: [B, C, T] x0 + sigma eps; dL_G/dx0 is the gradient with respect to it.
        """
        leaf, cond = noisy.detach().requires_grad_(), micro_batch.batch.cond
        with no_param_grads(self.fake_score.net, self.head):
            fake_x0, features = self.fake_score.denoise_with_features(leaf, sigma, cond, taps=self.tap_blocks)
            real_scores = self._real_scores(micro_batch) if self.config.kind == "relativistic" else None
            losses = generator_loss(self.head(features), self.config.kind, real_scores)
            (gradient,) = torch.autograd.grad(losses.mean(), leaf)
        return fake_x0.detach(), gradient, {"gan_loss": losses.detach()}

    @torch.no_grad()
    def _real_scores(self, micro_batch: MicroBatch) -> Tensor:
        x0, cond, row_rng = micro_batch.batch.x0, micro_batch.batch.cond, micro_batch.row_rng
        sigma = row_rng.sample_sigma(self.p_gan)
        return self.head(
            self.fake_score.extract_features(row_rng.add_noise(x0, sigma), sigma, cond, taps=self.tap_blocks)
        )

    def weight(self, dmd_norm: Tensor, gan_norm: Tensor) -> Tensor:
        """Return nu_1, or nu_1 |dL_DMD/dx0| / |dL_G/dx0|, given those norms over the global batch of all workers."""
        nu = torch.full((), self.config.generator_weight, device=dmd_norm.device)
        return nu if self.config.weight_mode == "absolute" else nu * dmd_norm / gan_norm.clamp(min=1e-10)


@contextmanager
def no_param_grads(*modules: nn.Module) -> Iterator[None]:
    """Disable gradients of the modules' parameters in the context, so that no graph is kept for them."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def check_taps(taps: tuple[int, ...], depth: int) -> None:
    """Check that every tap is a block of the teacher; raise ValueError otherwise."""
    outside = [t for t in taps if not 0 <= t < depth]
    if outside:
        raise ValueError(f"steps.gan.taps lists blocks {outside} that do not exist; choose from 0 to {depth - 1}")
