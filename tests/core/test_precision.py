"""Matrices of frozen networks in bf16: half the memory, and the bits of autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipelines.inference.model import open_model
from pipelines.inference.prompts import PromptWords, make_conditions
from pipelines.train.parallel import make_single_process
from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.sections import LoopConfig, LoraConfig, StepsConfig
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.models.pretrained import DEFAULT_TEACHER, make_pretrained_uri
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.families import FAMILIES
from presto_core.networks.network import Network
from presto_core.networks.precision import round_matrices
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.step_rng import make_step_rng
from tests.support.tiny_teachers import CHANNELS, TRANSFORMERS, make_arguments, make_transformer
from tests.support.toy_networks import batches, tiny_dit

ANY_WORDS = PromptWords(tempo_bpm=120.0)
BF16 = torch.bfloat16
SIGMA = torch.tensor([0.02, 0.5, 3.0, 60.0])


def count_bytes(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


@pytest.fixture(scope="module")
def shipped() -> Network:
    """The teacher of the package, with its Gaussian skip, conditions and text tokens."""
    return open_model(make_pretrained_uri(DEFAULT_TEACHER)).network.requires_grad_(False)


def test_the_shipped_teacher_gives_the_bits_of_autocast_at_half_the_bytes_of_its_matrices(shipped: Network):
    rounded = copy.deepcopy(shipped)
    round_matrices(rounded, BF16)
    linear = sum(count_bytes(m) for m in shipped.modules() if isinstance(m, nn.Linear))
    assert linear > 0.9 * count_bytes(shipped)
    assert count_bytes(rounded) == count_bytes(shipped) - linear // 2
    model = open_model(make_pretrained_uri(DEFAULT_TEACHER))
    x = model.draw_noise(4, generator=make_step_rng(0, total_step=0))
    cond = make_conditions(model, ["slow piano", "techno"] * 2, [ANY_WORDS] * 4)
    for cond_or_none in (cond, None):
        before, after = (EDMDenoiser(n, 1.0, BF16)(x, SIGMA, cond_or_none) for n in (shipped, rounded))
        assert torch.equal(before, after)
        full = EDMDenoiser(shipped, 1.0)(x, SIGMA, cond_or_none)
        assert not torch.equal(before, full)  # autocast was on
        # of a latent's standard deviation 1: what bf16 in the network costs
        assert (before - full).square().mean().sqrt() < 0.02


def test_a_network_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        round_matrices(tiny_dit(), BF16)


def test_distillation_in_bf16_ends_with_the_same_bits():
    ends = [distil(parallel) for parallel in (SINGLE_PROCESS, make_single_process(LoopConfig(autocast="bf16")))]
    (whole, before), (rounded, after) = ends
    assert count_bytes(rounded) < 0.7 * count_bytes(whole)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    untrained = tiny_dit().state_dict()
    assert not all(torch.equal(before[name], untrained[name]) for name in before)


def test_matrices_that_adapters_share_stay_as_they_are():
    teacher, _ = distil(make_single_process(LoopConfig(autocast="bf16")), lora=LoraConfig(rank=2))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def distil(parallel: Parallel, **settings: object) -> tuple[Network, dict[str, torch.Tensor]]:
    """Three updates in bf16; returns the teacher, and the generator's weights."""
    config = StepsConfig(generator_updates=1, fake_updates_per_generator_update=2, guidance_scale=2, **settings)
    teacher = tiny_dit()
    training = StepDistillation(config, teacher, parallel=parallel, autocast_dtype=BF16)
    for step, batch in zip(range(training.total_steps), batches()):
        training.update(batch, generator=make_step_rng(0, total_step=step))
        training.state.total_step += 1
    return teacher, training.state.networks["generator"].state_dict()


@pytest.mark.parametrize("name", FAMILIES)
def test_foreign_networks_keep_the_bits_of_autocast(name: str):
    config = DiffusersNetworkConfig(transformer_class=name, transformer=TRANSFORMERS[name])
    network = DiffusersNetwork(config).requires_grad_(False).eval()
    network.transformer.load_state_dict(make_transformer(name).state_dict())
    rounded = copy.deepcopy(network)
    round_matrices(rounded, BF16)
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in make_arguments(name, 3, 12).items()}
    x = torch.randn(3, CHANNELS, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", BF16):
        outputs = [net(x, torch.tensor([0.2, 0.5, 0.9]), arguments) for net in (network, rounded)]
    assert torch.equal(*outputs)
