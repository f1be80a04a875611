"""Presto-L: a base model learns to run fewer of its blocks where noise is high (METHOD section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_core.config.sections import LayersConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise
from presto_core.diffusion.noise import noise_from_config
from presto_core.losses.dsm import dsm_loss
from presto_core.losses.layer_distill import self_teacher_loss
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training import optim
from presto_core.training.ema import Ema
from presto_core.training.model import with_budget
from presto_core.training.parallel import ALONE, Parallel
from presto_core.training.state import Batch, TrainState
from presto_core.training.teacher import losses_by_sigma


class LayerDistillation:
    """The `Algorithm` of Presto-L, and of the ASE baseline with `mode: ase`.

    Args:
        teacher: raw network of the base model; copied, itself left alone.
        sigma_data: standard deviation of the normalised latents.

    Raises:
        UserError: the budget's table does not fit the teacher's depth.
    """

    def __init__(
        self,
        config: LayersConfig,
        teacher: DiT,
        *,
        sigma_data: float,
        parallel: Parallel = ALONE,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.sigma_data = config, sigma_data
        self.total_steps = config.steps
        self.depth = teacher.config.depth
        self.p_train = noise_from_config(config.p_train)
        self.budget = budget_of(config, self.depth)
        network = with_budget(teacher, self.budget)
        self.denoise = EDMDenoiser(network, sigma_data, autocast_dtype)
        # a batch may leave a block out, on one worker or on all
        trained = parallel.distribute(network, some_unused=True)
        self.trained_denoise = EDMDenoiser(trained, sigma_data, autocast_dtype)
        self.state = TrainState(
            networks={"layers": network},
            optimizers={"layers": optim.adamw(network.parameters(), config.optim)},
            emas={"layers": Ema(network, config.ema_decay)},
        )

    def update(self, batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        """minimise L_EDM at budget b(sigma) + beta |h(x; b) - sg(h(x; L))|^2."""
        sigma = self.p_train.sample(len(batch.x0), generator=generator, device=batch.x0.device)
        cond = batch.cond
        noisy, budget = add_noise(batch.x0, sigma, generator=generator), self.budget.of(sigma)
        x0_hat, hidden = self.trained_denoise.with_hidden(noisy, sigma, cond, budget)
        dsm = dsm_loss(x0_hat, batch.x0, sigma, self.sigma_data)
        metrics = {
            "dsm_loss": dsm.detach().mean(),
            "blocks_run": budget.float().mean(),
            **losses_by_sigma("dsm_loss", dsm.detach(), sigma, self.p_train),
        }
        loss = dsm.mean()
        if self.config.self_teacher_weight:
            distance = self._self_teacher_loss(hidden, noisy, sigma, cond, skipping=budget < self.depth)
            loss = loss + self.config.self_teacher_weight * distance
            metrics["self_teacher_loss"] = distance.detach()
        loss.backward()
        return metrics | self._step()

    def _self_teacher_loss(
        self, hidden: Tensor, noisy: Tensor, sigma: Tensor, cond: Conditioning, *, skipping: Tensor
    ) -> Tensor:
        """Mean over the batch; at full depth the distance is zero, so only samples that skip need a second pass."""
        rows = skipping.nonzero().squeeze(1)
        if not len(rows):
            return hidden.new_zeros(())
        with torch.no_grad():
            taps = (self.depth - 1,)
            (full_hidden,) = self.denoise.features(noisy[rows], sigma[rows], cond.rows(rows), taps=taps)
        return self_teacher_loss(hidden[rows], full_hidden.transpose(1, 2)).sum() / len(hidden)

    def _step(self) -> dict[str, Tensor]:
        state = self.state
        norm = optim.step(
            state.optimizers["layers"],
            self.config.optim,
            name="layers",
            update=state.total_step,
            total_updates=self.total_steps,
        )
        state.emas["layers"].update(state.networks["layers"])
        return {"grad_norm": torch.tensor(norm)}


def budget_of(config: LayersConfig, depth: int) -> LayerBudget:
    """The table that a layer distillation trains, over its own noise distribution.

    Raises:
        UserError: it does not fit the depth.
    """
    return LayerBudget.over(
        noise_from_config(config.p_train),
        config.budget,
        depth=depth,
        mode=config.mode,
        conditioned=config.budget_conditioning,
    )
