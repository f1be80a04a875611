"""The networks of Presto-S: real score, fake score with its discriminator head, generator, and their training state."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from presto_core.config.sections import LoraConfig, StepsConfig
from presto_core.diffusion.denoiser import Denoiser, EDMDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.diffusion.preconditions import Precondition
from presto_core.networks.adapters import add_adapters, share_equal_weights
from presto_core.networks.discriminator import PatchHead
from presto_core.networks.network import Network
from presto_core.training import optim
from presto_core.training.adversarial import AdversarialLoss, check_taps
from presto_core.training.ema import Ema
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState


@dataclass(frozen=True)
class StepNetworks:
    """What the updates of Presto-S call.

    Attributes:
        real_score: the frozen teacher, guided.
        fake_score, generator: trained; behind `trained_*`, their gradients are averaged over workers.
        adversarial_loss: the discriminator head on the fake score's activations.
        state: networks, optimizers and moving average.
    """

    real_score: Denoiser
    fake_score: EDMDenoiser
    generator: EDMDenoiser
    trained_fake_score: EDMDenoiser
    trained_generator: EDMDenoiser
    adversarial_loss: AdversarialLoss
    state: TrainState


def make_step_networks(
    config: StepsConfig,
    teacher: Network,
    start: Network,
    *,
    precondition: Precondition,
    drops_blocks: bool,
    parallel: Parallel,
    autocast_dtype: torch.dtype | None,
) -> StepNetworks:
    """Freeze the teacher; copy it for the fake score, and `start` for the generator.

    Args:
        drops_blocks: whether the generator has a layer budget, so that a batch may skip a block.

    Raises:
        ValueError: `gan.taps` names blocks that the teacher does not have.
    """
    tap_blocks = config.gan.taps or (teacher.depth // 2,)
    check_taps(tap_blocks, teacher.depth)
    generator, fake_score = _copy_networks(config.lora, teacher, start)
    head = PatchHead(
        teacher.width,
        num_taps=len(tap_blocks),
        channels=config.gan.head_channels,
        layers=config.gan.head_layers,
    ).to(parallel.device)
    ema = Ema(generator, config.ema_decay)
    frozen_teacher = teacher.requires_grad_(False).eval()
    parallel.prepare_frozen(frozen_teacher, name="real_score", is_shared=config.lora.rank > 0)
    fake_denoiser = EDMDenoiser(fake_score, precondition, autocast_dtype)
    generator_denoiser = EDMDenoiser(generator, precondition, autocast_dtype)
    distributed_generator = parallel.distribute(generator, name="generator", some_unused=drops_blocks)
    trained_generator = EDMDenoiser(distributed_generator, precondition, autocast_dtype)
    distributed_fake_score = parallel.distribute(fake_score, name="fake_score")
    trained_fake_score = EDMDenoiser(distributed_fake_score, precondition, autocast_dtype)
    is_adversarial = config.gan.generator_weight > 0
    adversarial_loss = AdversarialLoss(
        config.gan,
        config.p_gan,
        tap_blocks=tap_blocks,
        fake_score=fake_denoiser,
        trained_fake_score=trained_fake_score,
        head=head,
        trained_head=parallel.distribute(head, name="head") if is_adversarial else head,
    )
    ema.shard_like(generator)
    real_score = make_guided_denoiser(EDMDenoiser(frozen_teacher, precondition, autocast_dtype), config.guidance_scale)
    state = _make_state(config, generator, fake_score, head, ema)
    return StepNetworks(
        real_score, fake_denoiser, generator_denoiser, trained_fake_score, trained_generator, adversarial_loss, state
    )


def _copy_networks(lora: LoraConfig, teacher: Network, start: Network) -> list[Network]:
    """Return generator and fake score: whole copies, or adapters over the teacher's own weights."""
    if not lora.rank:
        return [copy.deepcopy(net).set_trainable() for net in (start, teacher)]
    if start is not teacher:
        share_equal_weights(start, teacher)
    return [add_adapters(net, lora) for net in (start, teacher)]


def _make_state(config: StepsConfig, generator: Network, fake_score: Network, head: PatchHead, ema: Ema) -> TrainState:
    networks: dict[str, nn.Module] = {"generator": generator, "fake_score": fake_score, "head": head}
    sections = {"generator": config.generator_optim, "fake_score": config.fake_optim, "head": config.head_optim}
    return TrainState(
        networks=networks,
        optimizers={name: optim.build_adamw(networks[name].parameters(), sections[name]) for name in networks},
        emas={"generator": ema},
    )
