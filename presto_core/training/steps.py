"""Presto-S: step distillation with frozen real score, trained fake score and few-step generator (METHOD section 3).

Presto-LS is the same with a generator that drops blocks by the noise level of its input (METHOD section 5).
"""

from __future__ import annotations

import copy
from enum import Enum

import torch
from torch import Tensor, nn

from presto_core.config.sections import StepsConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise, full_sigma
from presto_core.diffusion.guidance import guided
from presto_core.diffusion.noise import NoiseDistribution, noise_from_config
from presto_core.losses.dmd import dmd_gradient, dmd_loss
from presto_core.losses.dsm import dsm_loss
from presto_core.networks.discriminator import PatchHead
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training import optim
from presto_core.training.adversary import Adversary
from presto_core.training.ema import Ema
from presto_core.training.parallel import ALONE, Parallel
from presto_core.training.state import Batch, TrainState
from presto_core.training.teacher import losses_by_sigma


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
        teacher: DiT,
        *,
        sigma_data: float,
        start: DiT | None = None,
        budget: LayerBudget | None = None,
        parallel: Parallel = ALONE,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.sigma_data = sigma_data
        self.budget = budget
        self.parallel = parallel
        self.total_steps = config.generator_updates * (config.fake_updates_per_generator_update + 1)
        self.taps = config.gan.taps or (len(teacher.blocks) // 2,)
        _require_taps_in_depth(self.taps, len(teacher.blocks))
        self.p_gen, self.p_dmd, self.p_dsm, self.p_gan = (
            noise_from_config(p) for p in (config.p_gen, config.p_dmd, config.p_dsm, config.p_gan)
        )
        generator, fake_score = (copy.deepcopy(net).requires_grad_(True) for net in (start or teacher, teacher))
        head = PatchHead(
            teacher.config.dim,
            taps=len(self.taps),
            channels=config.gan.head_channels,
            layers=config.gan.head_layers,
        ).to(parallel.device)
        self._wrap(teacher, generator, fake_score, head, autocast_dtype)
        self.state = _new_state(config, generator, fake_score, head)

    def _wrap(self, teacher: DiT, generator: DiT, fake_score: DiT, head: PatchHead, dtype: torch.dtype | None) -> None:
        """Denoisers to call; those named `trained_*` average their gradients over workers."""
        distribute = self.parallel.distribute
        frozen = teacher.requires_grad_(False).eval()
        self.real_score = guided(EDMDenoiser(frozen, self.sigma_data, dtype), self.config.guidance_scale)
        self.generator = EDMDenoiser(generator, self.sigma_data, dtype)
        self.fake_score = EDMDenoiser(fake_score, self.sigma_data, dtype)
        # with a budget, a batch may leave a block out
        trained_generator = distribute(generator, some_unused=self.budget is not None)
        self.trained_generator = EDMDenoiser(trained_generator, self.sigma_data, dtype)
        self.trained_fake_score = EDMDenoiser(distribute(fake_score), self.sigma_data, dtype)
        self.adversary = Adversary(
            self.config.gan,
            self.p_gan,
            taps=self.taps,
            fake_score=self.fake_score,
            trained_fake_score=self.trained_fake_score,
            head=head,
            trained_head=distribute(head) if self.adversarial else head,
            parallel=self.parallel,
        )

    @property
    def adversarial(self) -> bool:
        return self.config.gan.generator_weight > 0

    @property
    def phase(self) -> Phase:
        """R critic steps, then one generator step."""
        ratio = self.config.fake_updates_per_generator_update
        return Phase.GENERATOR if self.state.total_step % (ratio + 1) == ratio else Phase.CRITIC

    def update(self, batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        if self.phase is Phase.CRITIC:
            return self._update_critic(batch, generator)
        return self._update_generator(batch, generator)

    def generate(self, x: Tensor, sigma: Tensor, cond: Conditioning, *, trained: bool = False) -> Tensor:
        """The generator's x0 [B, C, T], each sample at its budget; `trained` for the pass whose gradient moves it."""
        generator = self.trained_generator if trained else self.generator
        return generator(x, sigma, cond, self.budget.of(sigma) if self.budget else None)

    def _update_critic(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """minimise L_DSM + nu_2 L_D over fake score and head."""
        with torch.no_grad():
            x_in, sigma_gen = self._generator_input(batch, rng)
            x0 = self.generate(x_in, sigma_gen, batch.cond)
        sigma = self._noise_levels(self.p_dsm, batch, rng)
        x0_fake = self.trained_fake_score(add_noise(x0, sigma, generator=rng), sigma, batch.cond)
        dsm = dsm_loss(x0_fake, x0, sigma, self.sigma_data)
        metrics = {
            "dsm_loss": dsm.detach().mean(),
            **losses_by_sigma("dsm_loss", dsm.detach(), sigma, self.p_dsm),
        }
        loss = dsm.mean()
        if self.adversarial:
            critic_loss, critic_metrics = self.adversary.discriminator_loss(x0, batch, rng)
            loss = loss + self.config.gan.fake_score_weight * critic_loss
            metrics |= critic_metrics
        loss.backward()
        return metrics | self._step_critic()

    def _step_critic(self) -> dict[str, Tensor]:
        ratio = self.config.fake_updates_per_generator_update
        update = self.state.total_step - self.state.generator_step
        due = {"fake_score": self.config.fake_optim}
        if self.adversarial:
            due["head"] = self.config.head_optim
        total = self.config.generator_updates * ratio
        norms = {
            name: optim.step(self.state.optimizers[name], section, name=name, update=update, total_updates=total)
            for name, section in due.items()
        }
        return {f"{name}_grad_norm": torch.tensor(norm) for name, norm in norms.items()}

    def _update_generator(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """minimise L_DMD + nu_1 L_G over the generator, by way of the gradient at its output x0."""
        x_in, sigma_gen = self._generator_input(batch, rng)
        x0 = self.generate(x_in, sigma_gen, batch.cond, trained=True)
        gradient, metrics = self._dmd(x0.detach(), batch, rng)
        if self.adversarial and self.state.generator_step >= self.config.gan.warmup_updates:
            adversarial, gan_metrics = self.adversary.gradient(x0.detach(), batch, rng)
            weight = self.adversary.weight(gradient, adversarial)
            gradient = gradient + weight * adversarial
            metrics |= gan_metrics | {"gan_weight": weight}
        x0.backward(gradient)
        metrics |= {"x0_mean": x0.detach().mean(), "x0_std": x0.detach().std()}
        return metrics | self._step_generator()

    def _dmd(self, x0: Tensor, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient of L_DMD with respect to x0."""
        sigma = self._noise_levels(self.p_dmd, batch, rng)
        noisy = add_noise(x0, sigma, generator=rng)
        with torch.no_grad():
            real_x0 = self.real_score(noisy, sigma, batch.cond)
            fake_x0 = self.fake_score(noisy, sigma, batch.cond)
        g = dmd_gradient(x0, real_x0, fake_x0, sigma=sigma, sigma_data=self.sigma_data, weighting=self.config.weighting)
        leaf = x0.clone().requires_grad_()
        loss = dmd_loss(leaf, g)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, {"dmd_loss": loss.detach(), "dmd_grad_norm": gradient.norm()}

    def _step_generator(self) -> dict[str, Tensor]:
        state = self.state
        norm = optim.step(
            state.optimizers["generator"],
            self.config.generator_optim,
            name="generator",
            update=state.generator_step,
            total_updates=self.config.generator_updates,
        )
        state.emas["generator"].update(state.networks["generator"])
        state.generator_step += 1
        return {"generator_grad_norm": torch.tensor(norm)}

    def _noise_levels(self, p: NoiseDistribution, batch: Batch, rng: torch.Generator) -> Tensor:
        return p.sample(len(batch.x0), generator=rng, device=batch.x0.device)

    def _generator_input(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the generator denoises, [B, C, T], and its noise levels, [B]."""
        if self.config.generator_input == "rollout":
            return self._rollout(batch, rng)
        sigma = self._noise_levels(self.p_gen, batch, rng)
        return add_noise(batch.x0, sigma, generator=rng), sigma

    @torch.no_grad()
    def _rollout(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Backward simulation (DMD2): the generator's own trajectory up to a random one of its steps."""
        schedule = self.config.rollout
        levels = few_step_sigmas(
            schedule.steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho
        ).tolist()
        last = int(torch.randint(len(levels), (1,), generator=rng, device=batch.x0.device))
        x = add_noise(torch.zeros_like(batch.x0), full_sigma(levels[0], batch.x0), generator=rng)
        for sigma, sigma_next in zip(levels[:last], levels[1:]):
            x0 = self.generate(x, full_sigma(sigma, x), batch.cond)
            x = add_noise(x0, full_sigma(sigma_next, x), generator=rng)
        return x, full_sigma(levels[last], x)


def _new_state(config: StepsConfig, generator: DiT, fake_score: DiT, head: PatchHead) -> TrainState:
    networks: dict[str, nn.Module] = {"generator": generator, "fake_score": fake_score, "head": head}
    sections = {
        "generator": config.generator_optim,
        "fake_score": config.fake_optim,
        "head": config.head_optim,
    }
    return TrainState(
        networks=networks,
        optimizers={name: optim.adamw(networks[name].parameters(), sections[name]) for name in networks},
        emas={"generator": Ema(generator, config.ema_decay)},
    )


def _require_taps_in_depth(taps: tuple[int, ...], depth: int) -> None:
    outside = [t for t in taps if not 0 <= t < depth]
    if outside:
        raise ValueError(f"steps.gan.taps names blocks {outside}; the teacher has blocks 0 to {depth - 1}")
