"""Make a network of a teacher's folder, and compare its denoiser with the folder's own scheduler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import read_precondition
from presto_core.models.conditioner_import import load_conditioner, load_weights
from presto_core.models.flow_grid import SCHEDULER as FLOW_SCHEDULER
from presto_core.models.flow_grid import read_time_scale
from presto_core.models.lcm_grid import LcmGrid, scale_frequencies
from presto_core.models.teacher_components import ComponentFiles, TeacherError
from presto_core.models.teacher_folder import TeacherFolder
from presto_core.models.teacher_kind import keep_settings
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.families import FAMILIES, build_transformer

LEVELS, TOLERANCE = 8, 1e-4  # of fp32, relative to the largest value of x0
TEST_FRAMES = 32


@dataclass(frozen=True)
class SelfTest:
    """Largest relative difference of x0 between our denoiser and the folder's scheduler, by noise level."""

    errors: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.errors.values())


def make_precondition(folder: TeacherFolder) -> dict[str, Any]:
    """Return the parameterisation of the folder's family, as a model card keeps it."""
    return folder.precondition


def make_network_config(folder: TeacherFolder) -> DiffusersNetworkConfig:
    """Return the settings of the folder's network, without the names of weights that do not train."""
    return DiffusersNetworkConfig(
        transformer_class=folder.transformer.kind,
        transformer=keep_settings(folder.transformer.settings),
        conditioner=folder.kind.read_conditioner(folder.path, folder.parts),
        text_tokens=folder.text_tokens,
        clip_seconds=folder.clip_seconds,
    )


def load_network(folder: TeacherFolder) -> DiffusersNetwork:
    """Build the network and load its weights, in fp32; weights that no gradient reaches are frozen.

    Raises:
        TeacherError: weights are damaged or do not fit the settings.
    """
    config = make_network_config(folder)
    network = DiffusersNetwork(config)
    assert network.conditioner is not None
    load_weights(network.transformer, folder.transformer)
    load_conditioner(network.conditioner, folder)
    if isinstance(grid := folder.grid, LcmGrid):
        scale_frequencies(network.transformer, 1 / grid.time_step)
    frozen = find_frozen_weights(network)
    network.config = config.model_copy(update={"frozen": frozen})
    return network.set_trainable()


def find_frozen_weights(network: DiffusersNetwork) -> tuple[str, ...]:
    """Return the names of weights that do not train: those that the class keeps fixed or that no output depends on.

    The graph of one forward pass is walked; no gradient is computed.
    """
    family = FAMILIES[network.config.transformer_class]
    inputs = make_test_inputs(network)
    raw = network(inputs.x, torch.full((1,), 0.5), inputs.cond)
    assert isinstance(raw, Tensor)
    reached, queue, visited = set[int](), [raw.grad_fn], set[Any]()
    while queue:
        node = queue.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        queue += [parent for parent, _ in node.next_functions]
    return tuple(
        name
        for name, parameter in network.named_parameters()
        if name.startswith("transformer.")
        and (id(parameter) not in reached or any(part in name for part in family.frozen))
    )


@dataclass(frozen=True)
class TestInputs:
    """Noise [1, C, T] and conditions that are the same for the same network."""

    x: Tensor
    cond: Conditioning


def make_test_inputs(network: DiffusersNetwork) -> TestInputs:
    """Draw inputs of one clip, short to be quick: the transformer takes any length."""
    config, rng = network.config, torch.Generator().manual_seed(0)
    channels = int(config.transformer[FAMILIES[config.transformer_class].channels])
    assert network.conditioner is not None
    width = network.conditioner.text_dim
    mask = torch.arange(config.text_tokens)[None] < max(1, config.text_tokens // 2)
    cond = Conditioning(
        pooled=torch.zeros(1, width),
        tokens=torch.randn(1, config.text_tokens, width, generator=rng) * mask[..., None],
        mask=mask,
        tempo_bpm=torch.full((1,), torch.nan),
        key=torch.full((1,), UNKNOWN_KEY),
        keep=torch.ones(1, dtype=torch.bool),
        timing=torch.tensor([[0.0, config.clip_seconds]]),
    )
    return TestInputs(torch.randn(1, channels, TEST_FRAMES, generator=rng), cond)


@torch.no_grad()
def run_self_test(folder: TeacherFolder, network: DiffusersNetwork) -> SelfTest:
    """Compare x0 at eight levels of the scheduler's range.

    Raises:
        TeacherError: they differ by more than rounding.
    """
    kind = folder.components["scheduler"].kind
    if kind == FLOW_SCHEDULER:
        return _report(_compare_with_flow(folder, network, network.transformer), kind)
    if folder.grid:
        return _report(compare_with_scheduler(folder, network), kind)
    scheduler = load_scheduler(folder.components["scheduler"])
    denoise = EDMDenoiser(network, read_precondition(make_precondition(folder)))
    inputs, (low, high) = make_test_inputs(network), folder.sigma_range
    assert network.conditioner is not None
    arguments, errors = network.conditioner(inputs.cond, inputs.x), {}
    for sigma in torch.logspace(0, 1, LEVELS, base=high / low) * low:
        x = inputs.x * (1 + sigma**2).sqrt()
        ours = denoise(x, sigma.expand(1), inputs.cond)
        scaled, time = scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)
        raw = network.family.call(network.transformer, scaled, time.reshape(1), arguments)
        theirs = scheduler.precondition_outputs(x, raw, sigma)
        errors[f"{float(sigma):.4g}"] = float((ours - theirs).abs().max() / theirs.abs().max())
    return _report(errors, kind)


def _report(errors: dict[str, float], scheduler: str) -> SelfTest:
    test = SelfTest(errors)
    if not test.worst <= TOLERANCE:
        raise TeacherError(
            f"self-test failed: x0 of this package and of the folder's {scheduler} differ by {test.worst:.1e} of its "
            "largest value; report this with the versions of diffusers and torch"
        )
    return test


@torch.no_grad()
def compare_with_scheduler(
    folder: TeacherFolder, network: DiffusersNetwork, precondition: dict[str, Any] | None = None
) -> dict[str, float]:
    """Return how far x0 of a few-step folder's own transformer and scheduler is from our denoiser, by noise level.

    Args:
        precondition: parameterisation of the network; None is that of the folder's transformer.
    """
    transformer, grid = build_transformer(folder.transformer.kind, folder.transformer.settings), folder.grid
    load_weights(transformer, folder.transformer)
    if isinstance(grid, LcmGrid):
        return _compare_with_lcm(folder, network, transformer, grid)
    return _compare_with_flow(folder, network, transformer, precondition)


def _compare_with_lcm(
    folder: TeacherFolder, network: DiffusersNetwork, transformer: nn.Module, grid: LcmGrid
) -> dict[str, float]:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler.from_config(folder.components["scheduler"].settings)
    scheduler.set_timesteps(LEVELS)
    inputs, denoise = make_test_inputs(network), EDMDenoiser(network, read_precondition(make_precondition(folder)))
    assert network.conditioner is not None
    arguments, errors = network.conditioner(inputs.cond, inputs.x), {}
    for index in scheduler.timesteps:
        sigma = torch.tensor([grid.sigma_at(int(index))])
        raw = network.family.call(transformer, inputs.x, index[None], arguments)
        theirs = scheduler.step(raw, index, inputs.x).denoised
        ours = denoise(inputs.x * (1 + sigma**2).sqrt(), sigma, inputs.cond)
        errors[f"{float(sigma):.4g}"] = float((ours - theirs).abs().max() / theirs.abs().max())
    return errors


def _compare_with_flow(
    folder: TeacherFolder, network: DiffusersNetwork, transformer: nn.Module, precondition: dict[str, Any] | None = None
) -> dict[str, float]:
    """Compare x0 with that of one step of the flow scheduler from each level to the data."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings, own = folder.components["scheduler"].settings, folder.precondition
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    time_steps = read_time_scale(settings) / own["time_scale"]  # by which a pipeline divides the scheduler's
    inputs = make_test_inputs(network)
    denoise = EDMDenoiser(network, read_precondition(precondition or make_precondition(folder)))
    assert network.conditioner is not None
    arguments, errors, (low, high) = network.conditioner(inputs.cond, inputs.x), {}, folder.sigma_range
    for level in (torch.logspace(0, 1, LEVELS, base=high / low) * low).tolist():
        scheduler.set_timesteps(sigmas=[level / (1 + level)])
        t = float(scheduler.sigmas[0])  # which `shift` moves
        sigma = (1 - t) / t if own["kind"] == "flow_reversed" else t / (1 - t)
        taken = network.family.strip_padding(arguments)
        raw = network.family.run(transformer, inputs.x, scheduler.timesteps / time_steps, taken)
        theirs = scheduler.step(raw, scheduler.timesteps[0], inputs.x).prev_sample
        ours = denoise(inputs.x * (1 + sigma), torch.tensor([sigma]), inputs.cond)
        errors[f"{level:.4g}"] = float((ours - theirs).abs().max() / theirs.abs().max())
    return errors


def load_scheduler(component: ComponentFiles) -> Any:
    """Load the scheduler's class with its settings."""
    with _without_torchsde():
        module = import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    return getattr(module, component.kind)(**keep_settings(component.settings))


@contextmanager
def _without_torchsde() -> Iterator[None]:
    """Import the scheduler where torchsde is not installed: it draws noise with it, and no comparison needs noise."""
    if find_spec("torchsde") is not None:
        yield
        return
    sys.modules["torchsde"] = ModuleType("torchsde")
    try:
        yield
    finally:
        del sys.modules["torchsde"]
