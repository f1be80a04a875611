"""Training of the base model: EDM denoising score matching (METHOD section 1).

Conditions are withheld now and then, so that guidance is possible: the stream decides for which rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.config.noise import NoiseDistribution
from presto_core.config.sections import TeacherConfig
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.losses.dsm import dsm_loss
from presto_core.training import optim
from presto_core.training.ema import Ema
from presto_core.training.gradient_accumulation import (
    Metrics,
    MicroBatch,
    accumulated,
    micro_batches,
)
from presto_core.training.parallel import ALONE, Parallel
from presto_core.training.state import Batch, TrainState

SIGMA_BINS = 4  # quartiles of the noise distribution that losses are also logged by


class TeacherTraining:
    """The `Algorithm` that trains a base model.

    Args:
        network: raw network F, trained in place.
        sigma_data: standard deviation of the normalised latents.
    """

    def __init__(
        self,
        config: TeacherConfig,
        network: nn.Module,
        *,
        sigma_data: float,
        parallel: Parallel = ALONE,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.parallel = config, parallel
        self.total_steps = config.steps
        self.sigma_data = sigma_data
        self.p_train = config.p_train
        ema = Ema(network, config.ema_decay)
        self.denoise = EDMDenoiser(parallel.distribute(network, name="teacher"), sigma_data, autocast_dtype)
        ema.shard_like(network)
        self.state = TrainState(
            networks={"teacher": network},
            optimizers={"teacher": optim.adamw(network.parameters(), config.optim)},
            emas={"teacher": ema},
        )

    def update(self, batch: Batch, *, generator: torch.Generator) -> Metrics:
        metrics = accumulated(self._backward, micro_batches(batch, generator, self.parallel))
        return metrics | self._step()

    def _backward(self, part: MicroBatch) -> Metrics:
        """Gradient of L_EDM."""
        x0, cond, draws = part.batch.x0, part.batch.cond, part.draws
        part.before_backward(self.parallel, self.denoise.net)
        sigma = draws.sigma(self.p_train)
        x0_hat = self.denoise(draws.noised(x0, sigma), sigma, cond)
        losses = dsm_loss(x0_hat, x0, sigma, self.sigma_data)
        (part.weight * losses.mean()).backward()
        return observed("dsm_loss", losses.detach(), sigma, self.p_train)

    def _step(self) -> Metrics:
        state = self.state
        due = {"teacher": (state.optimizers["teacher"], self.config.optim)}
        norms = optim.step(due, update=state.total_step, total_updates=self.total_steps)
        state.emas["teacher"].update(state.networks["teacher"])
        return {"grad_norm": torch.tensor(norms["teacher"])}


def observed(name: str, losses: Tensor, sigma: Tensor, p: NoiseDistribution) -> Metrics:
    """losses [B], all and by quartile of p(sigma), NaN where a row is in another; `name/q1` has the least noise."""
    quartile = (p.cdf(sigma) * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1)
    bins = {f"{name}/q{i + 1}": losses.where(quartile == i, torch.nan) for i in range(SIGMA_BINS)}
    return {name: losses, **bins}
