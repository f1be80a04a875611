"""Presto-S: step distillation with frozen real score, trained fake score and few-step generator (METHOD section 3).

G generator, mu_fake fake score, mu_real^w guided real score (frozen teacher), D head on mu_fake's activations:

    repeat, with a fresh batch x, c for each update:                      eps is drawn anew from N(0, I) each time
        sigma_g ~ p_gen                                                   _generator_input
        x0 = G(x + sigma_g eps; sigma_g, c)                               generate
        R times of R + 1, critic update, x0 without gradient:             _critic_backward
            sigma ~ p_dsm
            L_DSM = lambda(sigma) |mu_fake(x0 + sigma eps; sigma, c) - x0|^2
            sigma, sigma' ~ p_gan                                         AdversarialLoss.discriminator_loss
            L_D = (D(x + sigma eps; sigma, c) - 1)^2 + D(x0 + sigma' eps; sigma', c)^2
            minimise L_DSM + nu_2 L_D over mu_fake and D                  _step_critic
        once of R + 1, generator update:                                  _generator_backward
            sigma ~ p_dmd;  x_t = x0 + sigma eps                          _output_gradients
            g = w (mu_fake(x_t; sigma, c) - mu_real^w(x_t; sigma, c))     losses.dmd.dmd_gradient
            sigma ~ p_gan                                                 AdversarialLoss.gradient
            L_G = (1 - D(x0 + sigma eps; sigma, c))^2
            back-propagate g / numel + nu_1 dL_G/dx0 from x0 into G
            step G, then its moving average                               _step_generator

With steps.shared_taps, D reads x0 in the passes of mu_fake in L_DSM and g, with the noise of these.

Presto-LS is the same with a generator that drops blocks by the noise level of its input (METHOD section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from presto_core.config.sections import StepsConfig
from presto_core.device import send
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.preconditions import Edm, Precondition
from presto_core.losses.dmd import dmd_gradient
from presto_core.losses.dsm import dsm_loss
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.network import Network
from presto_core.training import optim
from presto_core.training.generator_pass import GeneratorPass, global_metrics, simulate_rollout
from presto_core.training.gradient_accumulation import (
    Metrics,
    MicroBatch,
    accumulate,
    concat_metrics,
    split_micro_batches,
)
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.state import Batch
from presto_core.training.step_networks import make_step_networks
from presto_core.training.teacher import loss_by_sigma_quartile


class Phase(Enum):
    """The networks that a step updates."""

    CRITIC = "critic"  # fake score and discriminator head
    GENERATOR = "generator"


class StepDistillation:
    """The `Algorithm` of Presto-S, and of Presto-LS with a `budget`.

    Args:
        teacher: raw network of the teacher; copied for fake score and generator, itself frozen.
        precondition: parameterisation of the networks; None is EDM's, for latents of standard deviation `sigma_data`.
        start: initial network of the generator, if it is not the teacher.
        budget: blocks that the generator runs at each noise level of its input; None runs all. Scores run all blocks.
    """

    def __init__(
        self,
        config: StepsConfig,
        teacher: Network,
        *,
        sigma_data: float = 1.0,
        precondition: Precondition | None = None,
        start: Network | None = None,
        budget: LayerBudget | None = None,
        parallel: Parallel = SINGLE_PROCESS,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.budget, self.parallel = config, budget, parallel
        self.precondition = precondition or Edm(sigma_data)
        self.total_steps = config.generator_updates * (config.fake_updates_per_generator_update + 1)
        self.p_gen, self.p_dmd, self.p_dsm = config.p_gen, config.p_dmd, config.p_dsm
        networks = make_step_networks(
            config, teacher, start or teacher, precondition=self.precondition, drops_blocks=budget is not None,
            parallel=parallel, autocast_dtype=autocast_dtype,
        )  # fmt: skip
        self.real_score, self.fake_score, self.generator = networks.real_score, networks.fake_score, networks.generator
        self.trained_fake_score, self.trained_generator = networks.trained_fake_score, networks.trained_generator
        self.adversarial_loss, self.state = networks.adversarial_loss, networks.state

    @property
    def is_adversarial(self) -> bool:
        return self.config.gan.generator_weight > 0

    @property
    def phase(self) -> Phase:
        """R critic steps, then one generator step."""
        ratio = self.config.fake_updates_per_generator_update
        return Phase.GENERATOR if self.state.total_step % (ratio + 1) == ratio else Phase.CRITIC

    def update(self, batch: Batch, *, generator: torch.Generator) -> Metrics:
        micro_batches = split_micro_batches(batch, generator, self.parallel)
        if self.phase is Phase.CRITIC:
            return accumulate(self._critic_backward, micro_batches) | self._step_critic()
        return self._generator_backward(micro_batches) | self._step_generator()

    def generate(self, x: Tensor, sigma: Tensor, cond: Conditioning, *, trained: bool = False) -> Tensor:
        """Return the generator's x0 [B, C, T], each sample at its budget; `trained` for the pass to differentiate.

        Args:
            sigma: [B] noise levels on the CPU: the host chooses the blocks.
        """
        generator = self.trained_generator if trained else self.generator
        return generator(x, send(sigma, x.device), cond, self.budget.list_blocks(sigma) if self.budget else None)

    def _critic_backward(self, micro_batch: MicroBatch) -> Metrics:
        """Accumulate the gradient of L_DSM + nu_2 L_D with respect to fake score and head; return the metrics."""
        cond, row_rng, adversarial_loss = micro_batch.batch.cond, micro_batch.row_rng, self.adversarial_loss
        with torch.no_grad():
            x0 = self.generate(*self._generator_input(micro_batch), cond)
        micro_batch.set_grad_sync(self.parallel, self.trained_fake_score.net, adversarial_loss.trained_head)
        host_sigma = row_rng.sample_host_sigma(self.p_dsm)
        sigma = row_rng.send(host_sigma)
        noisy, features = row_rng.add_noise(x0, sigma), None
        if self.is_adversarial and self.config.shared_taps:
            fake_x0, features = adversarial_loss.estimate_with_features(noisy, sigma, cond)
        else:
            fake_x0 = self.trained_fake_score(noisy, sigma, cond)
        losses = dsm_loss(fake_x0, x0, sigma, self.precondition)
        metrics = loss_by_sigma_quartile("dsm_loss", losses.detach(), host_sigma, self.p_dsm)
        if self.is_adversarial:
            critic_losses, critic_metrics = adversarial_loss.discriminator_loss(x0, micro_batch, fake_features=features)
            losses = losses + self.config.gan.fake_score_weight * critic_losses
            metrics |= critic_metrics
        (micro_batch.weight * losses.mean()).backward()
        return metrics

    def _step_critic(self) -> Metrics:
        ratio = self.config.fake_updates_per_generator_update
        update = self.state.total_step - self.state.generator_step
        optimizers = self.state.optimizers
        due = {"fake_score": (optimizers["fake_score"], self.config.fake_optim)}
        if self.is_adversarial:
            due["head"] = (optimizers["head"], self.config.head_optim)
        norms = optim.step(due, update=update, total_updates=self.config.generator_updates * ratio)
        return {f"{name}_grad_norm": norm for name, norm in norms.items()}

    def _generator_backward(self, micro_batches: Sequence[MicroBatch]) -> Metrics:
        """Accumulate the gradient of L_DMD + nu_1 L_G with respect to the generator, through that at its output x0.

        If nu_1 depends on gradient norms of the whole batch, several micro-batches are generated twice: without a graph
        to compute the norms, then with one.
        """
        balanced = self._is_gan_active and self.config.gan.weight_mode == "grad_ratio"
        outputs = []
        for micro_batch in micro_batches:
            outputs.append(
                self._generate_with_gradients(micro_batch, with_graph=len(micro_batches) == 1 or not balanced)
            )
            if not balanced:
                self._backprop_to_generator(outputs[-1], self.config.gan.generator_weight)
        batch_metrics = global_metrics(outputs, self.parallel)
        if self._is_gan_active:
            batch_metrics["gan_weight"] = self.adversarial_loss.weight(
                batch_metrics["dmd_grad_norm"], batch_metrics["gan_grad_norm"]
            )
        if balanced:
            for output in outputs:
                self._backprop_to_generator(output, batch_metrics["gan_weight"])
        return concat_metrics([output.metrics for output in outputs]) | batch_metrics

    @property
    def _is_gan_active(self) -> bool:
        """Whether the generator's loss includes its adversarial term at this step."""
        return self.is_adversarial and self.state.generator_step >= self.config.gan.warmup_updates

    def _generate_with_gradients(self, micro_batch: MicroBatch, *, with_graph: bool) -> GeneratorPass:
        """Run the generator on a micro-batch and compute the gradients of its losses at the output."""
        x_in, sigma = self._generator_input(micro_batch)
        if with_graph:
            x0 = self._forward_generator(micro_batch, x_in, sigma)
        else:
            with torch.no_grad():
                x0 = self.generate(x_in, sigma, micro_batch.batch.cond)
        dmd, adversarial, metrics = self._output_gradients(x0.detach(), micro_batch)
        metrics["x0_mean"] = x0.detach().mean(dim=(1, 2))
        return GeneratorPass(micro_batch, x_in, sigma, x0, dmd, adversarial, metrics)

    def _backprop_to_generator(self, output: GeneratorPass, gan_weight: Tensor | float) -> None:
        """Back-propagate the gradient at x0 to the generator's weights."""
        x0 = output.x0
        if not x0.requires_grad:
            x0 = self._forward_generator(output.micro_batch, output.x_in, output.sigma)
        x0.backward(output.gradient(gan_weight))
        output.x0 = x0.detach()

    def _forward_generator(self, micro_batch: MicroBatch, x_in: Tensor, sigma: Tensor) -> Tensor:
        micro_batch.set_grad_sync(self.parallel, self.trained_generator.net)
        return self.generate(x_in, sigma, micro_batch.batch.cond, trained=True)

    def _output_gradients(self, x0: Tensor, micro_batch: MicroBatch) -> tuple[Tensor, Tensor | None, Metrics]:
        """Return the gradients of L_DMD and, if it is active, L_G with respect to x0, [B, C, T], and their metrics."""
        cond, row_rng = micro_batch.batch.cond, micro_batch.row_rng
        sigma = row_rng.sample_sigma(self.p_dmd)
        noisy = row_rng.add_noise(x0, sigma)
        if self._is_gan_active and self.config.shared_taps:
            fake_x0, gan, gan_metrics = self.adversarial_loss.estimate_with_gradient(noisy, sigma, micro_batch)
        else:
            with torch.no_grad():
                fake_x0, gan, gan_metrics = self.fake_score(noisy, sigma, cond), None, {}
        dmd, metrics = self._dmd_gradient(x0, noisy, sigma, fake_x0, cond)
        if self._is_gan_active and gan is None:
            gan, gan_metrics = self.adversarial_loss.gradient(x0, micro_batch)
        return dmd, gan, metrics | gan_metrics

    def _dmd_gradient(
        self, x0: Tensor, noisy: Tensor, sigma: Tensor, fake_x0: Tensor, cond: Conditioning
    ) -> tuple[Tensor, Metrics]:
        """Return the gradient of L_DMD with respect to x0, [B, C, T], and the loss as a metric."""
        with torch.no_grad():
            real_x0 = self.real_score(noisy, sigma, cond)
        g = dmd_gradient(
            x0, real_x0, fake_x0, sigma=sigma, precondition=self.precondition, weighting=self.config.weighting
        )
        # L_DMD = 1/2 mean|x0 - sg(x0 - g)|^2 has the value mean(g^2) / 2 and the gradient g / numel at x0. Both are
        # computed from g: x0 - (x0 - g) would round g to the precision of x0.
        return g / g.numel(), {"dmd_loss": (g.square().mean() / 2).expand(len(x0))}

    def _step_generator(self) -> Metrics:
        state = self.state
        due = {"generator": (state.optimizers["generator"], self.config.generator_optim)}
        norms = optim.step(due, update=state.generator_step, total_updates=self.config.generator_updates)
        state.emas["generator"].update(state.networks["generator"])
        state.generator_step += 1
        return {"generator_grad_norm": norms["generator"]}

    def _generator_input(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the generator's input, [B, C, T], and its noise levels, [B] on the CPU."""
        if self.config.generator_input == "rollout":
            return simulate_rollout(self.generate, micro_batch, self.config.rollout)
        row_rng = micro_batch.row_rng
        sigma = row_rng.sample_host_sigma(self.p_gen)
        return row_rng.add_noise(micro_batch.batch.x0, row_rng.send(sigma)), sigma
