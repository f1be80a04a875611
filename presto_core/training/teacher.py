"""Teacher training: EDM denoising score matching (METHOD section 1).

The data stream drops the conditions of random rows, which makes classifier-free guidance possible."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.config.noise import NoiseDistribution
from presto_core.config.sections import TeacherConfig
from presto_core.device import send
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Edm, Precondition
from presto_core.losses.dsm import dsm_loss
from presto_core.training import optim
from presto_core.training.ema import Ema
from presto_core.training.gradient_accumulation import Metrics, MicroBatch, accumulate, split_micro_batches
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.state import Batch, TrainState

SIGMA_BINS = 4  # losses are also logged per quartile of the noise distribution


class TeacherTraining:
    """The `Algorithm` that trains a teacher.

    Args:
        network: raw network F, trained in place.
        precondition: parameterisation of the networks; None is EDM's, for latents of standard deviation `sigma_data`.
    """

    def __init__(
        self,
        config: TeacherConfig,
        network: nn.Module,
        *,
        sigma_data: float = 1.0,
        precondition: Precondition | None = None,
        parallel: Parallel = SINGLE_PROCESS,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.parallel = config, parallel
        self.total_steps = config.steps
        self.precondition = precondition or Edm(sigma_data)
        self.p_train = config.p_train
        ema = Ema(network, config.ema_decay)
        self.denoise = EDMDenoiser(parallel.distribute(network, name="teacher"), self.precondition, autocast_dtype)
        ema.shard_like(network)
        self.state = TrainState(
            networks={"teacher": network},
            optimizers={"teacher": optim.build_adamw(network.parameters(), config.optim)},
            emas={"teacher": ema},
        )

    def update(self, batch: Batch, *, generator: torch.Generator) -> Metrics:
        metrics = accumulate(self._backward, split_micro_batches(batch, generator, self.parallel))
        return metrics | self._step()

    def _backward(self, micro_batch: MicroBatch) -> Metrics:
        """Accumulate the gradient of L_EDM and return its metrics."""
        x0, cond, row_rng = micro_batch.batch.x0, micro_batch.batch.cond, micro_batch.row_rng
        micro_batch.set_grad_sync(self.parallel, self.denoise.net)
        host_sigma = row_rng.sample_host_sigma(self.p_train)
        sigma = row_rng.send(host_sigma)
        x0_hat = self.denoise(row_rng.add_noise(x0, sigma), sigma, cond)
        losses = dsm_loss(x0_hat, x0, sigma, self.precondition)
        (micro_batch.weight * losses.mean()).backward()
        return loss_by_sigma_quartile("dsm_loss", losses.detach(), host_sigma, self.p_train)

    def _step(self) -> Metrics:
        state = self.state
        due = {"teacher": (state.optimizers["teacher"], self.config.optim)}
        norms = optim.step(due, update=state.total_step, total_updates=self.total_steps)
        state.emas["teacher"].update(state.networks["teacher"])
        return {"grad_norm": norms["teacher"]}


def loss_by_sigma_quartile(name: str, losses: Tensor, sigma: Tensor, p: NoiseDistribution) -> Metrics:
    """Return losses [B], all and per quartile of p(sigma), NaN in other quartiles; `name/q1` has the lowest noise.

    Args:
        sigma: [B] noise levels on the CPU, where distributions compute.
    """
    quartile = send((p.cdf(sigma) * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1), losses.device)
    bins = {f"{name}/q{i + 1}": losses.where(quartile == i, torch.nan) for i in range(SIGMA_BINS)}
    return {name: losses, **bins}
