"""What the generator of Presto-S is given and what it makes of it, with the gradients of its losses there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_core.config.sampling import RolloutConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import full_sigma
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training.gradient_accumulation import Metrics, MicroBatch
from presto_core.training.parallel import Parallel

GenerateFn = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass
class GeneratorPass:
    """The generator's output for a micro-batch.

    Attributes:
        part: the micro-batch.
        x_in, sigma: what the generator denoised: [B, C, T] and [B].
        x0: [B, C, T]; with a graph until it has been pulled back.
        dmd, adversarial: gradients at x0 of the two losses, each a mean over the micro-batch; None is not asked for.
    """

    micro_batch: MicroBatch
    x_in: Tensor
    sigma: Tensor
    x0: Tensor
    dmd: Tensor
    adversarial: Tensor | None
    metrics: Metrics

    def gradient(self, gan_weight: Tensor | float) -> Tensor:
        """Of the weighted losses, as a part of the mean over the worker's rows."""
        both = self.dmd if self.adversarial is None else self.dmd + gan_weight * self.adversarial
        return self.micro_batch.weight * both

    def sums(self) -> Tensor:
        """[5] fp64, additive over micro-batches: squared gradients, x0, its square, and how many numbers that is."""
        x0, fp64 = self.x0.detach(), torch.float64
        squares = [
            x0.new_zeros((), dtype=fp64) if g is None else (self.micro_batch.weight * g).square().sum(dtype=fp64)
            for g in (self.dmd, self.adversarial)
        ]
        count = x0.new_tensor(x0.numel(), dtype=fp64)
        return torch.stack([*squares, x0.sum(dtype=fp64), x0.square().sum(dtype=fp64), count])


def global_metrics(outputs: Sequence[GeneratorPass], parallel: Parallel) -> Metrics:
    """Norms of the two gradients at x0, and the standard deviation of x0, over the joined batch of all workers."""
    dmd, adversarial, x, x_squared, count = parallel.average(torch.stack([o.sums() for o in outputs]).sum(0))
    workers = parallel.world_size  # in the joined batch's mean a row counts 1 / workers of what it does in a share's
    variance = workers * (x_squared - x.square() / count) / (workers * count - 1)
    metrics = {"dmd_grad_norm": (dmd / workers).sqrt(), "x0_std": variance.sqrt()}
    if outputs[0].adversarial is not None:
        metrics["gan_grad_norm"] = (adversarial / workers).sqrt()
    return metrics


@torch.no_grad()
def simulate_rollout(generate: GenerateFn, micro_batch: MicroBatch, schedule: RolloutConfig) -> tuple[Tensor, Tensor]:
    """Backward simulation (DMD2): the generator's own trajectory up to a random one of its steps.

    Returns:
        What the generator is to denoise, [B, C, T], and its noise levels, [B].
    """
    batch, row_rng = micro_batch.batch, micro_batch.row_rng
    levels = few_step_sigmas(
        schedule.steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho
    ).tolist()
    last = row_rng.sample_index(len(levels))
    x = row_rng.add_noise(torch.zeros_like(batch.x0), full_sigma(levels[0], batch.x0))
    for sigma, sigma_next in zip(levels[:last], levels[1:]):
        x0 = generate(x, full_sigma(sigma, x), batch.cond)
        x = row_rng.add_noise(x0, full_sigma(sigma_next, x))
    return x, full_sigma(levels[last], x)
