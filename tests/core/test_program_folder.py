"""Generators as torch.export programs: a reader of the JSON file alone gets our latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.models.model_card import ModelCard
from presto_core.models.program_folder import ProgramFolder, write_program_folder
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import list_few_step_levels

TEXT_DIM, CHANNELS, FRAMES = 8, 4, 8
BUDGET = LayerBudget(kept=(1, 2), edges=(2.0,), distribution={})


def make_conditions(batch: int) -> Conditioning:
    rng = torch.Generator().manual_seed(2)
    return Conditioning(
        torch.randn(batch, TEXT_DIM, generator=rng), torch.randn(batch, 3, TEXT_DIM, generator=rng),
        torch.tensor([[True, True, False]] * batch), torch.linspace(70, 140, batch), torch.arange(batch),
        torch.ones(batch, dtype=torch.bool),
    )  # fmt: skip


def sample_from_files(folder: Path, steps: int, noise: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Sample as sampler.json says, with PyTorch alone; noise: [K, B, C, T]."""
    settings = json.loads((folder / "sampler.json").read_text())
    names = [entry["name"] for entry in settings["inputs"]][2:]
    x0 = torch.zeros_like(noise[0])
    for step, eps in zip(settings["steps"][str(steps)], noise, strict=True):
        program = torch.export.load(folder / step["program"]).module()
        sigma = torch.full((len(x0),), step["sigma"])
        x0 = program(x0 + step["sigma"] * eps, sigma, *(inputs[name] for name in names))
    mean, std = (torch.tensor(settings[name])[:, None] for name in ("mean", "std"))
    return x0 * std + mean


@torch.no_grad()
def make_network() -> tuple[DiT, ModelCard]:
    config = NetworkConfig(dim=16, depth=3, heads=2, patch=2, spectrum_bins=FRAMES, beat_heads=1, frame_rate=8)
    network = DiT.for_budget(config, channels=CHANNELS, text_dim=TEXT_DIM, budget=BUDGET).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    card = ModelCard(
        network=config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=0.5, mean=[1.0] * CHANNELS,
        std=[3.0] * CHANNELS, codec={"kind": "mel_pca", "path": "/home/me"}, text={"dim": TEXT_DIM},
        layer_budget=BUDGET.to_dict(), few_step_schedules={"2": {"sigma_max": 20.0, "sigmas": [20.0, 0.5]}},
    )  # fmt: skip
    return network, card


def write_programs(network: DiT, card: ModelCard, cond: Conditioning, folder: Path) -> ProgramFolder:
    one = cond.rows(slice(0, 1))
    return write_program_folder(network, card, cond=one, target=folder / "out", budget=None, model_id="a" * 16)


@torch.no_grad()
def test_programs_alone_give_our_latents_at_any_batch(tmp_path: Path):
    (network, card), cond = make_network(), make_conditions(2)
    written = write_programs(network, card, cond, tmp_path)
    assert set(written.files) == {1, 2}
    assert written.error < 1e-5
    assert "/home/me" not in (written.path / "sampler.json").read_text()
    example = load_file(written.path / "example.safetensors")
    torch.testing.assert_close(sample_from_files(written.path, 4, example["noise"], example), example["latents"])
    first, again = (torch.Generator().manual_seed(3) for _ in range(2))
    shape = (2, CHANNELS, FRAMES)
    levels, noise = list_few_step_levels(2, card.schedule_at(2)), torch.randn(shape, generator=first)
    assert levels.tolist() == [20.0, 0.5]
    expected = ping_pong(
        EDMDenoiser(network, 0.5), noise, levels, cond, generator=first, budget=LayerBudget.blocks_at.__get__(BUDGET)
    )
    drawn = torch.stack([torch.randn(shape, generator=again) for _ in range(2)])
    found = sample_from_files(written.path, 2, drawn, vars(cond))
    torch.testing.assert_close(found, card.denormalize(expected))
    with pytest.raises(FileNotFoundError):
        write_program_folder(network, card, cond=cond, target=Path("/proc/none/out"), budget=1, model_id="a")


@pytest.mark.slow
@torch.no_grad()
def test_aotinductor_compiles_programs(tmp_path: Path):
    written = write_programs(*make_network(), make_conditions(2), tmp_path)
    for program in sorted(written.path.glob("*.pt2")):
        exported = torch.export.load(program)
        compiled = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / program.name))
        inputs, _ = exported.example_inputs
        torch.testing.assert_close(torch._inductor.aoti_load_package(compiled)(*inputs), exported.module()(*inputs))
