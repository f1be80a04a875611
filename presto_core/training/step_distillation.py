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
            sigma ~ p_dmd;  x_t = x0 + sigma eps                          _dmd_gradient
            g = w (mu_fake(x_t; sigma, c) - mu_real^w(x_t; sigma, c))     losses.dmd.dmd_gradient
            sigma ~ p_gan                                                 AdversarialLoss.gradient
            L_G = (1 - D(x0 + sigma eps; sigma, c))^2
            back-propagate g / numel + nu_1 dL_G/dx0 from x0 into G
            step G, then its moving average                               _step_generator

Presto-LS is the same with a generator that drops blocks by the noise level of its input (METHOD section 5).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor, nn

from presto_core.config.sections import StepsConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.guidance import guided
from presto_core.losses.dmd import dmd_gradient
from presto_core.losses.dsm import dsm_loss
from presto_core.networks.discriminator import PatchHead
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.network import Network
from presto_core.training import optim
from presto_core.training.adversarial import Adversary, require_taps_in_depth
from presto_core.training.ema import Ema
from presto_core.training.generator_pass import (
    Generated,
    joint_metrics,
    rollout,
)
from presto_core.training.gradient_accumulation import (
    Metrics,
    MicroBatch,
    accumulated,
    joined,
    micro_batches,
)
from presto_core.training.parallel import ALONE, Parallel
from presto_core.training.state import Batch, TrainState
from presto_core.training.teacher import observed


class Phase(Enum):
    """Which networks a step moves."""

    CRITIC = "critic"  # fake score and discriminator head
    GENERATOR = "generator"


class StepDistillation:
    """The `Algorithm` of Presto-S, and of Presto-LS with a `budget`.

    Args:
        teacher: raw network of the base model; copied for fake score and generator, itself frozen.
        sigma_data: standard deviation of the normalised latents.
        start: network that the generator starts as, where that is not the teacher.
        budget: blocks the generator runs at each noise level of its input; None runs all. Scores run all of theirs.
    """

    def __init__(
        self,
        config: StepsConfig,
        teacher: Network,
        *,
        sigma_data: float,
        start: Network | None = None,
        budget: LayerBudget | None = None,
        parallel: Parallel = ALONE,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.sigma_data = sigma_data
        self.budget = budget
        self.parallel = parallel
        self.total_steps = config.generator_updates * (config.fake_updates_per_generator_update + 1)
        self.taps = config.gan.taps or (teacher.depth // 2,)
        require_taps_in_depth(self.taps, teacher.depth)
        self.p_gen, self.p_dmd, self.p_dsm, self.p_gan = config.p_gen, config.p_dmd, config.p_dsm, config.p_gan
        generator, fake_score = (copy.deepcopy(net).requires_grad_(True) for net in (start or teacher, teacher))
        head = PatchHead(
            teacher.width,
            taps=len(self.taps),
            channels=config.gan.head_channels,
            layers=config.gan.head_layers,
        ).to(parallel.device)
        ema = Ema(generator, config.ema_decay)
        self._wrap(teacher, generator, fake_score, head, autocast_dtype)
        ema.shard_like(generator)
        self.state = _new_state(config, generator, fake_score, head, ema)

    def _wrap(
        self, teacher: Network, generator: Network, fake_score: Network, head: PatchHead, dtype: torch.dtype | None
    ) -> None:
        """Denoisers to call; those named `trained_*` average their gradients over workers."""
        distribute = self.parallel.distribute
        frozen = teacher.requires_grad_(False).eval()
        self.parallel.hold(frozen, "real_score")
        self.real_score = guided(EDMDenoiser(frozen, self.sigma_data, dtype), self.config.guidance_scale)
        self.generator = EDMDenoiser(generator, self.sigma_data, dtype)
        self.fake_score = EDMDenoiser(fake_score, self.sigma_data, dtype)
        # with a budget, a batch may leave a block out
        trained_generator = distribute(generator, name="generator", some_unused=self.budget is not None)
        self.trained_generator = EDMDenoiser(trained_generator, self.sigma_data, dtype)
        self.trained_fake_score = EDMDenoiser(distribute(fake_score, name="fake_score"), self.sigma_data, dtype)
        self.adversary = Adversary(
            self.config.gan,
            self.p_gan,
            taps=self.taps,
            fake_score=self.fake_score,
            trained_fake_score=self.trained_fake_score,
            head=head,
            trained_head=distribute(head, name="head") if self.adversarial else head,
        )

    @property
    def adversarial(self) -> bool:
        return self.config.gan.generator_weight > 0

    @property
    def phase(self) -> Phase:
        """R critic steps, then one generator step."""
        ratio = self.config.fake_updates_per_generator_update
        return Phase.GENERATOR if self.state.total_step % (ratio + 1) == ratio else Phase.CRITIC

    def update(self, batch: Batch, *, generator: torch.Generator) -> Metrics:
        parts = micro_batches(batch, generator, self.parallel)
        if self.phase is Phase.CRITIC:
            return accumulated(self._critic_backward, parts) | self._step_critic()
        return self._generator_backward(parts) | self._step_generator()

    def generate(self, x: Tensor, sigma: Tensor, cond: Conditioning, *, trained: bool = False) -> Tensor:
        """The generator's x0 [B, C, T], each sample at its budget; `trained` for the pass whose gradient moves it."""
        generator = self.trained_generator if trained else self.generator
        return generator(x, sigma, cond, self.budget.of(sigma) if self.budget else None)

    def _critic_backward(self, part: MicroBatch) -> Metrics:
        """Gradient of L_DSM + nu_2 L_D with respect to fake score and head."""
        cond, draws, adversary = part.batch.cond, part.draws, self.adversary
        with torch.no_grad():
            x_in, sigma_gen = self._generator_input(part)
            x0 = self.generate(x_in, sigma_gen, cond)
        part.before_backward(self.parallel, self.trained_fake_score.net, adversary.trained_head)
        sigma = draws.sigma(self.p_dsm)
        losses = dsm_loss(self.trained_fake_score(draws.noised(x0, sigma), sigma, cond), x0, sigma, self.sigma_data)
        metrics = observed("dsm_loss", losses.detach(), sigma, self.p_dsm)
        if self.adversarial:
            critic_losses, critic_metrics = adversary.discriminator_loss(x0, part)
            losses = losses + self.config.gan.fake_score_weight * critic_losses
            metrics |= critic_metrics
        (part.weight * losses.mean()).backward()
        return metrics

    def _step_critic(self) -> Metrics:
        ratio = self.config.fake_updates_per_generator_update
        update = self.state.total_step - self.state.generator_step
        optimizers = self.state.optimizers
        due = {"fake_score": (optimizers["fake_score"], self.config.fake_optim)}
        if self.adversarial:
            due["head"] = (optimizers["head"], self.config.head_optim)
        norms = optim.step(due, update=update, total_updates=self.config.generator_updates * ratio)
        return {f"{name}_grad_norm": torch.tensor(norm) for name, norm in norms.items()}

    def _generator_backward(self, parts: Sequence[MicroBatch]) -> Metrics:
        """Gradient of L_DMD + nu_1 L_G with respect to the generator, by way of the gradient at its output x0.

        Where nu_1 follows from gradient norms of the whole batch, several micro-batches are generated twice: without a
        graph to learn the norms, then with one.
        """
        balanced = self._judging and self.config.gan.weight_mode == "grad_ratio"
        outputs = []
        for part in parts:
            outputs.append(self._generated(part, with_graph=len(parts) == 1 or not balanced))
            if not balanced:
                self._pull_back(outputs[-1], self.config.gan.generator_weight)
        joint = joint_metrics(outputs, self.parallel)
        if self._judging:
            joint["gan_weight"] = self.adversary.weight(joint["dmd_grad_norm"], joint["gan_grad_norm"])
        if balanced:
            for output in outputs:
                self._pull_back(output, joint["gan_weight"])
        return joined([output.metrics for output in outputs]) | joint

    @property
    def _judging(self) -> bool:
        """Whether the generator's loss has its adversarial term by now."""
        return self.adversarial and self.state.generator_step >= self.config.gan.warmup_updates

    def _generated(self, part: MicroBatch, *, with_graph: bool) -> Generated:
        """What the generator makes of a micro-batch, and the gradients of its losses there."""
        x_in, sigma = self._generator_input(part)
        if with_graph:
            x0 = self._trained_pass(part, x_in, sigma)
        else:
            with torch.no_grad():
                x0 = self.generate(x_in, sigma, part.batch.cond)
        dmd, metrics = self._dmd_gradient(x0.detach(), part)
        adversarial = None
        if self._judging:
            adversarial, gan_metrics = self.adversary.gradient(x0.detach(), part)
            metrics |= gan_metrics
        metrics["x0_mean"] = x0.detach().mean(dim=(1, 2))
        return Generated(part, x_in, sigma, x0, dmd, adversarial, metrics)

    def _pull_back(self, output: Generated, gan_weight: Tensor | float) -> None:
        """Take the gradient at x0 back to the generator's weights."""
        x0 = output.x0
        if not x0.requires_grad:
            x0 = self._trained_pass(output.part, output.x_in, output.sigma)
        x0.backward(output.gradient(gan_weight))
        output.x0 = x0.detach()

    def _trained_pass(self, part: MicroBatch, x_in: Tensor, sigma: Tensor) -> Tensor:
        part.before_backward(self.parallel, self.trained_generator.net)
        return self.generate(x_in, sigma, part.batch.cond, trained=True)

    def _dmd_gradient(self, x0: Tensor, part: MicroBatch) -> tuple[Tensor, Metrics]:
        """Gradient of L_DMD with respect to x0: [B, C, T]."""
        cond, draws = part.batch.cond, part.draws
        sigma = draws.sigma(self.p_dmd)
        noisy = draws.noised(x0, sigma)
        with torch.no_grad():
            real_x0 = self.real_score(noisy, sigma, cond)
            fake_x0 = self.fake_score(noisy, sigma, cond)
        g = dmd_gradient(x0, real_x0, fake_x0, sigma=sigma, sigma_data=self.sigma_data, weighting=self.config.weighting)
        # L_DMD = 1/2 mean|x0 - sg(x0 - g)|^2 has the value mean(g^2) / 2 and the gradient g / numel at x0. Both are
        # formed from g: x0 - (x0 - g) would round g to the precision of x0.
        return g / g.numel(), {"dmd_loss": (g.square().mean() / 2).expand(len(x0))}

    def _step_generator(self) -> Metrics:
        state = self.state
        due = {"generator": (state.optimizers["generator"], self.config.generator_optim)}
        norms = optim.step(due, update=state.generator_step, total_updates=self.config.generator_updates)
        state.emas["generator"].update(state.networks["generator"])
        state.generator_step += 1
        return {"generator_grad_norm": torch.tensor(norms["generator"])}

    def _generator_input(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """What the generator denoises, [B, C, T], and its noise levels, [B]."""
        if self.config.generator_input == "rollout":
            return rollout(self.generate, part, self.config.rollout)
        sigma = part.draws.sigma(self.p_gen)
        return part.draws.noised(part.batch.x0, sigma), sigma


def _new_state(config: StepsConfig, generator: Network, fake_score: Network, head: PatchHead, ema: Ema) -> TrainState:
    networks: dict[str, nn.Module] = {"generator": generator, "fake_score": fake_score, "head": head}
    sections = {"generator": config.generator_optim, "fake_score": config.fake_optim, "head": config.head_optim}
    return TrainState(
        networks=networks,
        optimizers={name: optim.adamw(networks[name].parameters(), sections[name]) for name in networks},
        emas={"generator": ema},
    )
