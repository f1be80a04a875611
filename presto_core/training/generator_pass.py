"""One pass of the Presto-S generator: its input, its output, and the gradients of its losses at the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_core.config.sampling import RolloutConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import full_sigma
from presto_core.samplers.schedule import list_few_step_levels
from presto_core.training.gradient_accumulation import Metrics, MicroBatch
from presto_core.training.parallel import Parallel

GenerateFn = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass
class GeneratorPass:
    """The generator's output for a micro-batch.

    Attributes:
        micro_batch: its rows.
        x_in, sigma: input and noise levels of the generator: [B, C, T], and [B] on the CPU.
        x0: [B, C, T]; with a graph until its gradient is back-propagated.
        dmd, adversarial: gradients at x0 of the two losses, each a mean over the micro-batch; None if not computed.
    """

    micro_batch: MicroBatch
    x_in: Tensor
    sigma: Tensor
    x0: Tensor
    dmd: Tensor
    adversarial: Tensor | None
    metrics: Metrics

    def gradient(self, gan_weight: Tensor | float) -> Tensor:
        """Return the gradient of L_DMD + nu_1 L_G at x0, weighted as part of the mean over the worker's rows."""
        both = self.dmd if self.adversarial is None else self.dmd + gan_weight * self.adversarial
        return self.micro_batch.weight * both

    def sums(self) -> Tensor:
        """Return sums [5] fp64, additive over micro-batches: both squared gradients, x0, its square, and the count."""
        x0, fp64 = self.x0.detach(), torch.float64
        squares = [
            x0.new_zeros((), dtype=fp64) if g is None else (self.micro_batch.weight * g).square().sum(dtype=fp64)
            for g in (self.dmd, self.adversarial)
        ]
        count = x0.new_full((), x0.numel(), dtype=fp64)
        return torch.stack([*squares, x0.sum(dtype=fp64), x0.square().sum(dtype=fp64), count])


def global_metrics(outputs: Sequence[GeneratorPass], parallel: Parallel) -> Metrics:
    """Return the norms of the two gradients at x0, and the standard deviation of x0, over the global batch."""
    dmd, adversarial, x, x_squared, count = parallel.average(torch.stack([o.sums() for o in outputs]).sum(0))
    workers = parallel.world_size
    # a sum over all W workers is W times the average. The gradient of the global mean is, per row, 1/W of that of the
    # worker's mean, so |g|^2 = W avg / W^2 = avg / W;  var(x0) = (sum x^2 - (sum x)^2 / n) / (n - 1), n = W count
    variance = workers * (x_squared - x.square() / count) / (workers * count - 1)
    metrics = {"dmd_grad_norm": (dmd / workers).sqrt(), "x0_std": variance.sqrt()}
    if outputs[0].adversarial is not None:
        metrics["gan_grad_norm"] = (adversarial / workers).sqrt()
    return metrics


@torch.no_grad()
def simulate_rollout(generate: GenerateFn, micro_batch: MicroBatch, schedule: RolloutConfig) -> tuple[Tensor, Tensor]:
    """Simulate the generator's own trajectory up to a random step (backward simulation, DMD2, Yin et al. 2024).

    Returns:
        Input of the generator, [B, C, T], and its noise levels, [B] on the CPU.
    """
    batch, row_rng = micro_batch.batch, micro_batch.row_rng
    levels = list_few_step_levels(schedule.steps, schedule).tolist()
    last = row_rng.sample_index(len(levels))
    x = row_rng.add_noise(torch.zeros_like(batch.x0), full_sigma(levels[0], batch.x0))
    for sigma, sigma_next in zip(levels[:last], levels[1:]):
        x0 = generate(x, _full_host_sigma(sigma, x), batch.cond)
        x = row_rng.add_noise(x0, full_sigma(sigma_next, x))
    return x, _full_host_sigma(levels[last], x)


def _full_host_sigma(sigma: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype)
