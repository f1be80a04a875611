"""Presto-L: a teacher learns to run fewer of its blocks at high noise (METHOD section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_core.config.sections import LayersConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Edm, Precondition
from presto_core.losses.dsm import dsm_loss
from presto_core.losses.layer_distill import self_teacher_loss
from presto_core.networks.adapters import add_adapters
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.network import Network
from presto_core.training import optim
from presto_core.training.ema import Ema
from presto_core.training.gradient_accumulation import Metrics, MicroBatch, accumulate, split_micro_batches
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.state import Batch, TrainState
from presto_core.training.teacher import loss_by_sigma_quartile


class LayerDistillation:
    """The `Algorithm` of Presto-L, and of the ASE baseline with `mode: ase`.

    Args:
        teacher: raw network of the teacher; it is copied and left unchanged.
        precondition: parameterisation of the networks; None is EDM's, for latents of standard deviation `sigma_data`.

    Raises:
        UserError: the budget's table does not fit the teacher's depth.
    """

    def __init__(
        self,
        config: LayersConfig,
        teacher: Network,
        *,
        sigma_data: float = 1.0,
        precondition: Precondition | None = None,
        parallel: Parallel = SINGLE_PROCESS,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.parallel = config, parallel
        self.precondition = precondition or Edm(sigma_data)
        self.total_steps = config.steps
        self.depth = teacher.depth
        self.p_train = config.p_train
        self.budget = make_layer_budget(config, self.depth)
        network = teacher.with_budget(self.budget)
        if config.lora.rank:
            network = add_adapters(network, config.lora)
        ema = Ema(network, config.ema_decay)
        self.denoise = EDMDenoiser(network, self.precondition, autocast_dtype)
        # a batch may skip a block, on one worker or on all
        trained = parallel.distribute(network, name="layers", some_unused=True)
        ema.shard_like(network)
        self.trained_denoise = EDMDenoiser(trained, self.precondition, autocast_dtype)
        self.state = TrainState(
            networks={"layers": network},
            optimizers={"layers": optim.build_adamw(network.parameters(), config.optim)},
            emas={"layers": ema},
        )

    def update(self, batch: Batch, *, generator: torch.Generator) -> Metrics:
        metrics = accumulate(self._backward, split_micro_batches(batch, generator, self.parallel))
        return metrics | self._step()

    def _backward(self, micro_batch: MicroBatch) -> Metrics:
        """Accumulate the gradient of the loss and return its metrics."""
        # L = L_EDM at budget b(sigma) + beta |h(x; b) - sg(h(x; L))|^2   (METHOD section 4)
        x0, cond, row_rng = micro_batch.batch.x0, micro_batch.batch.cond, micro_batch.row_rng
        micro_batch.set_grad_sync(self.parallel, self.trained_denoise.net)
        host_sigma = row_rng.sample_host_sigma(self.p_train)
        sigma, budget = row_rng.send(host_sigma), self.budget.list_blocks(host_sigma)
        noisy = row_rng.add_noise(x0, sigma)
        x0_hat, hidden = self.trained_denoise.denoise_with_hidden(noisy, sigma, cond, budget)
        losses = dsm_loss(x0_hat, x0, sigma, self.precondition)
        metrics = loss_by_sigma_quartile("dsm_loss", losses.detach(), host_sigma, self.p_train)
        metrics["blocks_run"] = row_rng.send(budget).float()
        if self.config.self_teacher_weight:
            skipping = [row for row, blocks in enumerate(budget) if blocks < self.depth]
            distances = self._self_teacher_loss(hidden, noisy, sigma, cond, rows=row_rng.send(skipping))
            losses = losses + self.config.self_teacher_weight * distances
            metrics["self_teacher_loss"] = distances.detach()
        (micro_batch.weight * losses.mean()).backward()
        return metrics

    def _self_teacher_loss(
        self, hidden: Tensor, noisy: Tensor, sigma: Tensor, cond: Conditioning, *, rows: Tensor
    ) -> Tensor:
        """Return the self-teacher loss [B]; it is zero at full depth, so only `rows` that skip need a second pass."""
        distances = hidden.new_zeros(len(hidden))
        if not len(rows) and not self.denoise.net.run_empty_blocks:
            return distances
        with torch.no_grad():
            taps = (self.depth - 1,)
            (full_hidden,) = self.denoise.extract_features(noisy[rows], sigma[rows], cond.rows(rows), taps=taps)
        return distances.index_put((rows,), self_teacher_loss(hidden[rows], full_hidden.transpose(1, 2)))

    def _step(self) -> Metrics:
        state = self.state
        due = {"layers": (state.optimizers["layers"], self.config.optim)}
        norms = optim.step(due, update=state.total_step, total_updates=self.total_steps)
        state.emas["layers"].update(state.networks["layers"])
        return {"grad_norm": norms["layers"]}


def make_layer_budget(config: LayersConfig, depth: int) -> LayerBudget:
    """Return the budget table that a layer distillation trains, over its noise distribution.

    Raises:
        UserError: the table does not fit the depth.
    """
    return LayerBudget.from_distribution(
        config.p_train,
        config.budget,
        depth=depth,
        mode=config.mode,
        conditioned=config.budget_conditioning,
    )
