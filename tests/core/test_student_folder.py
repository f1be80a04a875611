"""Distilled networks as diffusers folders: the stock pipeline gives our samples, and so does their import."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import VCosine
from presto_core.models.lcm_grid import LcmGrid
from presto_core.models.model_card import ModelCard
from presto_core.models.student_folder import ExportError, StudentFolder, choose_budget, write_student_folder
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import load_network, run_self_test
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from presto_core.text.encoder import load_text_encoder
from tests.support.tiny_teachers import CHANNELS, FRAMES, TEXT_DIM, TOKENS, edit_json, write_stable_audio

BUDGET, PROMPT, SECONDS = LayerBudget(kept=(2, 3, 4), edges=(30.0, 1.0), distribution={}), "slow piano jazz", 0.2


@dataclass(frozen=True)
class Export:
    teacher: Path
    network: DiffusersNetwork
    card: ModelCard
    written: StudentFolder

    @property
    def folder(self) -> Path:
        return self.written.path


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Three of four blocks, with an embedding of the budget that is not zero."""
    home = tmp_path_factory.mktemp("export")
    teacher = write_stable_audio(home / "teacher")
    (teacher / "vae" / "old.bin").write_bytes(b"a pickle")
    network = load_network(read_teacher_folder(teacher)).with_budget(BUDGET).eval()
    assert network.budget_table is not None
    nn.init.normal_(network.budget_table, std=0.2, generator=torch.Generator().manual_seed(1))
    card = ModelCard(
        network=network.config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=1.0, mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS, codec={}, text={"dim": TEXT_DIM}, layer_budget=BUDGET.to_dict(),
        precondition={"kind": "v_cosine"}, sigma_range=[0.3, 500.0],
    )  # fmt: skip
    target, options = home / "student", {"licence": "apache-2.0", "model_id": "a" * 16}
    return Export(
        teacher,
        network,
        card,
        write_student_folder(network, card, teacher=teacher, target=target, budget=3, **options),
    )


@pytest.fixture
def changed(export: Export, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export.folder, tmp_path / "copy"))


def make_conditions(folder: Path) -> Conditioning:
    text = load_text_encoder("diffusers", path=str(folder), max_tokens=TOKENS).encode([PROMPT])
    return Conditioning(
        text.pooled, text.tokens, text.mask, torch.full((1,), torch.nan), torch.full((1,), UNKNOWN_KEY),
        torch.ones(1, dtype=torch.bool), torch.tensor([[0.0, SECONDS]]),
    )  # fmt: skip


@torch.inference_mode()
def sample(network: DiffusersNetwork, folder: Path, sigmas: list[float], budget: int | None) -> Tensor:
    """Sample with our own ping-pong, from the noise that the pipeline draws too."""
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(1, CHANNELS, FRAMES, generator=rng)
    levels, fixed = torch.tensor(sigmas, dtype=torch.float64), None if budget is None else lambda sigma: budget
    denoise = EDMDenoiser(network, VCosine())
    return ping_pong(denoise, noise, levels, make_conditions(folder), generator=rng, budget=fixed)


@torch.inference_mode()
def sample_stock(folder: Path, steps: int) -> Tensor:
    """Sample as a user of diffusers does, who knows nothing of this package."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(5)
    options: dict[str, Any] = {"generator": rng, "output_type": "latent", "audio_end_in_s": SECONDS}
    return pipe(PROMPT, num_inference_steps=steps, guidance_scale=1.0, **options).audios


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_and_an_import_give_our_samples(export: Export, steps: int):
    expected = sample(export.network, export.teacher, export.written.sigmas[steps], 3)
    tolerance = 5e-6 * float(expected.abs().max())  # of it 2e-6, as the pipeline starts at z and not at c_in sigma z
    torch.testing.assert_close(sample_stock(export.folder, steps), expected, rtol=0, atol=tolerance)
    imported = load_network(read_teacher_folder(export.folder)).eval()
    assert imported.depth == 3
    again = sample(imported, export.folder, export.written.sigmas[steps], None)
    torch.testing.assert_close(again, expected, rtol=0, atol=tolerance)
    other = sample(export.network, export.teacher, export.written.sigmas[steps], 4)
    assert (other - expected).abs().max() > 0.05  # the budget matters


def test_a_student_folder_is_read_as_one(export: Export):
    assert not list(export.folder.rglob("*.bin"))
    assert "license" in (export.folder / "README.md").read_text()
    folder = read_teacher_folder(export.folder)
    assert folder.licence == "apache-2.0"
    assert folder.grid is not None
    assert folder.sigma_range == pytest.approx([LcmGrid(500.0).sigma_at(1), 500.0], rel=1e-6)
    assert run_self_test(folder, load_network(folder)).worst < 1e-5
    assert export.written.error < 1e-5
    assert not list(export.folder.parent.glob(".*"))


@pytest.mark.parametrize(
    "change",
    [
        {"timestep_scaling": 10.0}, {"prediction_type": "epsilon"}, {"trained_betas": None}, {"clip_sample": True},
        {"trained_betas": [0.01] * 256}, {"original_inference_steps": 50}, {"trained_betas": ["x"] * 256},
        {"trained_betas": [1.5] * 256}, {"num_train_timesteps": 1000},
    ],
)  # fmt: skip
def test_another_lcm_scheduler_is_refused(changed: Path, change: dict[str, Any]):
    edit_json(changed / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(TeacherError, match="LCMScheduler"):
        read_teacher_folder(changed)


def test_times_that_do_not_fit_the_transformer_fail_the_self_test(changed: Path):
    grid = LcmGrid(400.0)
    (changed / "scheduler" / "scheduler_config.json").write_text(json.dumps(grid.to_settings()))
    folder = read_teacher_folder(changed)
    network = load_network(folder)
    with torch.no_grad():
        network.transformer.get_parameter("time_proj.weight").mul_(1.01)  # as of another grid
    with pytest.raises(TeacherError, match="self-test"):
        run_self_test(folder, network)


def test_models_that_the_format_cannot_hold_are_refused_and_leave_nothing(export: Export, tmp_path: Path):
    with pytest.raises(ExportError, match=r"2, 3, 4.*--budget 4"):
        choose_budget(export.card, None)
    assert choose_budget(export.card, 1) == 1
    options: dict[str, Any] = {"licence": "", "model_id": "a" * 16, "target": tmp_path / "out"}
    with pytest.raises(ExportError, match="text_encoder"):
        write_student_folder(export.network, export.card, teacher=tmp_path, budget=2, **options)
    dit = ModelCard(**{**vars(export.card), "network": {"dim": 8, "depth": 1}})
    with pytest.raises(ExportError, match="torch-export"):
        write_student_folder(export.network, dit, teacher=export.teacher, budget=2, **options)
    assert not list(tmp_path.iterdir())


def test_the_levels_of_the_grid_are_those_of_the_stock_scheduler():
    from diffusers import LCMScheduler

    grid = LcmGrid(500.0)
    scheduler = LCMScheduler.from_config(grid.to_settings())
    for steps in (1, 3, 4, 7, 16):
        scheduler.set_timesteps(steps)
        kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        found = ((1 - kept) / kept).sqrt()
        torch.testing.assert_close(found, torch.tensor(grid.list_sigmas(steps)).double(), rtol=1e-4, atol=0)
    assert LcmGrid.from_settings(grid.to_settings()).sigma_max == pytest.approx(500, rel=1e-9)
