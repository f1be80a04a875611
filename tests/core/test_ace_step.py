"""ACE-Step as a teacher: its folder, conditions, lengths, and a student that its stock pipeline samples alike."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Flow
from presto_core.models import teacher_import
from presto_core.models.ace_step_kind import AceStepKind
from presto_core.models.flow_grid import START, ShiftedGrid
from presto_core.models.model_card import ModelCard
from presto_core.models.program_folder import write_program_folder
from presto_core.models.student_folder import ExportError, StudentFolder, write_student_folder
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import load_network, run_self_test
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.samplers.few_step import ping_pong
from presto_core.text.ace_step_encoder import LYRICS
from presto_core.text.encoder import TextError, load_text_encoder, text_digest
from tests.support.imported_teachers import encode_prompts, expect_refusal, load_conditioned, load_pipeline
from tests.support.stock_noise import share_noise
from tests.support.tiny_teachers import CHANNELS, FRAMES, TEXT_DIM, edit_json, write_ace_step

HOP, RATE_HZ, TOKENS = 1024, 8000, 256
SECONDS = FRAMES * HOP / RATE_HZ
PROMPTS = ["slow piano jazz", "piano", ""]
SCHEDULER, TRANSFORMER = "scheduler/scheduler_config.json", "transformer/config.json"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ace_step(tmp_path_factory.mktemp("teacher") / "random-audio")


@pytest.fixture(scope="module")
def network(teacher: Path) -> DiffusersNetwork:
    return load_conditioned(read_teacher_folder(teacher, seconds=SECONDS))


def make_card(network: DiffusersNetwork) -> ModelCard:
    return ModelCard(
        network=network.config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=1.0, mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS, codec={"kind": "diffusers", "sample_rate_hz": RATE_HZ, "hop": HOP, "digest": "0"},
        text={"dim": TEXT_DIM, "max_tokens": TOKENS, "kind": "diffusers", "digest": "0"},
        precondition={"kind": "flow", "time_scale": 1.0}, sigma_range=[0.06, 147.0],
    )  # fmt: skip


def write_student(network: DiffusersNetwork, teacher: Path, target: Path) -> StudentFolder:
    """Three of four blocks."""
    card = make_card(network)
    return write_student_folder(
        network, card, teacher=teacher, target=target, budget=3, licence="mit", model_id="a" * 16
    )


@pytest.fixture(scope="module")
def student(teacher: Path, network: DiffusersNetwork) -> StudentFolder:
    return write_student(network, teacher, teacher.parent / "student")


def make_conditions(folder: Path, *prompts: str) -> Conditioning:
    return encode_prompts(folder, prompts, seconds=SECONDS, max_tokens=TOKENS, frames=FRAMES)


def encode_as_pipeline(pipe: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """Return the sequence and the context of one prompt, by the pipeline's own functions."""
    text = pipe.encode_prompt(prompt, LYRICS, torch.device("cpu"), audio_duration=SECONDS)
    silence, mask = pipe.condition_encoder.silence_latent, torch.ones(1, FRAMES, CHANNELS)
    thirty_s = silence[:, : math.ceil(30 * RATE_HZ / HOP)]
    tokens, visible = pipe.condition_encoder(*text, thirty_s, torch.arange(1))
    assert visible.all()
    return tokens, torch.cat([silence[:, :FRAMES], mask], dim=2)


def test_a_folder_is_read_and_its_clips_have_the_requested_length(teacher: Path):
    folder = read_teacher_folder(teacher, seconds=SECONDS)
    assert (folder.channels, folder.frames, folder.text_tokens, folder.audio_channels) == (CHANNELS, FRAMES, TOKENS, 2)
    assert (folder.clip_seconds, folder.grid, folder.licence) == (SECONDS, None, "mit")
    assert "audio_tokenizer" not in folder.components  # of covers, which are not made
    assert read_teacher_folder(teacher).frames == math.ceil(60 * RATE_HZ / HOP)  # as the pipeline's call
    assert read_teacher_folder(teacher, seconds=SECONDS + 1e-3).frames == FRAMES + 1  # rounded up, as there


def test_lengths_are_those_that_survive_the_pipelines_rounding():
    parts = {"vae": {"sampling_rate": 48_000, "downsampling_ratios": [2, 4, 4, 6, 10]}}
    for seconds, frames in ((30, 750), (60, 1500), (0.28, 8), (4.38, 113), (4.52, 113)):  # 109 to 112 fail there
        assert AceStepKind().count_frames(parts, seconds) == frames
        assert math.ceil(frames / 25 * 25.0) == frames


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline_for_each_prompt_alone(teacher: Path, network: DiffusersNetwork):
    pipe, x = load_pipeline(teacher), torch.zeros(2, CHANNELS, FRAMES)
    assert network.conditioner
    cond = make_conditions(teacher, *PROMPTS[:2])
    ours = network.conditioner(cond, x)
    for row, prompt in enumerate(PROMPTS[:2]):
        tokens, context = encode_as_pipeline(pipe, prompt)
        visible = ours["encoder_attention_mask"][row, 0, 0]
        torch.testing.assert_close(ours["encoder_hidden_states"][row, visible], tokens[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours["context_latents"][row], context[0])
    null = network.conditioner(replace(cond, keep=torch.tensor([False, True])), x)["encoder_hidden_states"]
    learned = pipe.condition_encoder.null_condition_emb
    torch.testing.assert_close(null[:1], learned.expand_as(null[:1]))
    assert torch.equal(null[1], ours["encoder_hidden_states"][1])
    for nothing in (None, make_conditions(teacher, "", "")):
        made = network.conditioner(nothing, x)["encoder_hidden_states"]
        torch.testing.assert_close(made, learned.expand_as(made))


@torch.no_grad()
def test_a_row_of_a_batch_is_what_the_class_computes_of_it_alone(teacher: Path, network: DiffusersNetwork):
    """The class attends to padding; the network does not, whatever the batch, budgets and cut of the tokens."""
    pipe, rng = load_pipeline(teacher), torch.Generator().manual_seed(2)
    x, time = torch.randn(3, CHANNELS, FRAMES, generator=rng), torch.rand(3, generator=rng)
    cond = make_conditions(teacher, *PROMPTS)
    longest = int(cond.mask.sum(1).max())
    cond = replace(cond, tokens=cond.tokens[:, :longest], mask=cond.mask[:, :longest])
    budgets = torch.tensor([2, 4, 3])
    together = network(x, time, cond, budgets)
    for row, prompt in enumerate(PROMPTS):
        alone = network(x[row, None], time[row, None], cond.rows(slice(row, row + 1)), int(budgets[row]))
        torch.testing.assert_close(together[row, None], alone, rtol=1e-4, atol=1e-4)
        tokens, context = encode_as_pipeline(pipe, prompt)
        if not prompt:
            tokens = pipe.condition_encoder.null_condition_emb.expand_as(tokens)
        plain = network.keep_blocks(int(budgets[row])).transformer
        theirs = plain(x[row, None].transpose(1, 2), time[row, None], time[row, None], tokens, context)
        torch.testing.assert_close(alone, theirs.sample.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_the_denoiser_agrees_with_the_folders_own_scheduler(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    folder = read_teacher_folder(teacher, seconds=SECONDS)
    network = load_network(folder)
    test = run_self_test(folder, network)
    assert len(test.errors) == 8
    assert test.worst < 5e-6
    monkeypatch.setattr(teacher_import, "make_precondition", lambda folder: {"kind": "flow_reversed"})
    with pytest.raises(TeacherError, match="self-test"):
        run_self_test(folder, network)


def test_only_the_transformer_trains(network: DiffusersNetwork):
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"transformer", "budget_table"}
    assert network.config.frozen == ()


def test_the_text_names_the_length_of_clips(teacher: Path, student: StudentFolder):
    def load(folder: Path, frames: int) -> Any:
        return load_text_encoder("diffusers", path=str(folder), max_tokens=TOKENS, frames=frames)

    short, long = load(teacher, FRAMES), load(teacher, 2 * FRAMES)
    assert (short.dim, short.max_tokens) == (TEXT_DIM, TOKENS)
    assert short.digest == text_digest("diffusers", path=str(teacher), max_tokens=TOKENS, frames=FRAMES)
    assert short.digest == load(student.path, FRAMES + 1).digest != long.digest  # 4 s, and 8 s
    assert not torch.allclose(short.encode(["piano"]).tokens, long.encode(["piano"]).tokens)
    assert short.find_cut_text("piano") == short.find_cut_text("") == ""
    assert "seconds" in short.find_cut_text("piano " * 220)  # the end of the prompt is read last
    assert short.find_cut_text("piano " * 300).startswith("piano")
    with pytest.raises(TextError, match="frames"):
        text_digest("diffusers", path=str(teacher), max_tokens=TOKENS)
    with pytest.raises(TextError, match=r"text\.max_tokens=40.*256"):
        text_digest("diffusers", path=str(teacher), max_tokens=40, frames=FRAMES)


@torch.inference_mode()
def sample(network: DiffusersNetwork, folder: Path, sigmas: list[float], budget: int | None) -> Tensor:
    """Sample with our own ping-pong, from the noise that the pipeline draws too."""
    rng, levels = torch.Generator().manual_seed(5), torch.tensor(sigmas, dtype=torch.float64)
    noise, fixed = torch.randn(1, CHANNELS, FRAMES, generator=rng), None if budget is None else lambda sigma: budget
    cond = make_conditions(folder, PROMPTS[0])
    return ping_pong(EDMDenoiser(network, Flow()), noise, levels, cond, generator=rng, budget=fixed)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_and_an_import_give_our_samples(
    teacher: Path, network: DiffusersNetwork, student: StudentFolder, steps: int
):
    expected = sample(network, teacher, student.sigmas[steps], 3)
    pipe, call = load_pipeline(student.path), eval(f"dict({student.call})")
    with share_noise(pipe, torch.Generator().manual_seed(5)):  # guidance_scale is 7 unless it is given
        stock = pipe(PROMPTS[0], num_inference_steps=steps, output_type="latent", **call).audios.transpose(1, 2)
    torch.testing.assert_close(stock, expected, rtol=0, atol=5e-5)
    imported = load_network(read_teacher_folder(student.path, seconds=SECONDS)).eval()
    assert imported.depth == 3
    again = sample(imported, student.path, student.sigmas[steps], None)
    torch.testing.assert_close(again, expected, rtol=0, atol=5e-5)
    assert (sample(network, teacher, student.sigmas[steps], 4) - expected).abs().max() > 0.05  # the budget matters


def test_a_student_folder_is_read_as_one(student: StudentFolder):
    folder = read_teacher_folder(student.path, seconds=SECONDS)
    assert folder.grid == ShiftedGrid()
    assert folder.transformer.settings["is_turbo"] is True
    assert folder.transformer.settings["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]
    assert run_self_test(folder, load_network(folder)).worst < 5e-6
    assert student.error < 5e-6
    assert student.call == f'audio_duration={SECONDS}, lyrics="[Instrumental]"'
    assert student.call in (student.path / "README.md").read_text()
    assert load_pipeline(student.path).audio_tokenizer is None


def test_levels_are_those_of_the_pipeline(student: StudentFolder):
    pipe = load_pipeline(student.path)
    for steps in (1, 3, 4, 8, 16):
        first, *rest = ShiftedGrid().list_sigmas(steps)
        times = pipe._get_timestep_schedule(steps, dtype=torch.float32).tolist()
        assert (first, times[0]) == (START, 1.0)
        assert [sigma / (1 + sigma) for sigma in rest] == pytest.approx(times[1:], rel=1e-12)
    low, high = ShiftedGrid().sigma_range
    fine = ShiftedGrid().list_sigmas(50)
    assert [low, high] == pytest.approx([fine[-1], fine[1]], rel=1e-4)


def test_another_teachers_condition_encoder_is_not_exported(teacher: Path, network: DiffusersNetwork, tmp_path: Path):
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    weights = next((other / "condition_encoder").glob("*.safetensors"))
    state = load_file(weights)
    save_file(state | {"null_condition_emb": state["null_condition_emb"] + 1}, weights)
    with pytest.raises(ExportError, match=r"condition_encoder of .*other.*storage\.codec_folder"):
        write_student(network, other, tmp_path / "student")
    assert not (tmp_path / "student").exists()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing component": (lambda f: shutil.rmtree(f / "condition_encoder"), "lacks condition_encoder"),
    "other codec": (
        lambda f: edit_json(f / "model_index.json", vae=["diffusers", "AutoencoderSAME"]),
        "AutoencoderOobleck",
    ),
    "turbo": (lambda f: edit_json(f / TRANSFORMER, is_turbo=True), "is_turbo=true"),
    "turbo by name": (lambda f: edit_json(f / TRANSFORMER, model_version="turbo"), 'model_version="turbo"'),
    "other channels": (lambda f: edit_json(f / "vae/config.json", decoder_input_channels=16), "latent channels 16"),
    "no context": (lambda f: edit_json(f / TRANSFORMER, in_channels=8), "input channels 8"),
    "other text width": (lambda f: edit_json(f / "text_encoder/config.json", hidden_size=32), "text width 32"),
    "other timbre": (lambda f: edit_json(f / "condition_encoder/config.json", timbre_hidden_dim=4), "timbre width 4"),
    "other width": (lambda f: edit_json(f / TRANSFORMER, encoder_hidden_size=32), "conditioning width 64"),
    "no strides": (lambda f: edit_json(f / "vae/config.json", downsampling_ratios=None), "downsampling_ratios"),
    "clips longer than known": (lambda f: edit_json(f / "vae/config.json", downsampling_ratios=[4]), "too long"),
    "inverted levels": (lambda f: edit_json(f / SCHEDULER, invert_sigmas=True), "invert_sigmas=True"),
    "shifted few-step levels": (lambda f: edit_json(f / SCHEDULER, stochastic_sampling=True, shift=3.0), "shift=3.0"),
    "unknown component": (lambda f: edit_json(f / "model_index.json", planner=["x", "Planner"]), "planner"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_a_teacher_is_refused_by_name(damage: str, teacher: Path, tmp_path: Path):
    copy = Path(shutil.copytree(teacher, tmp_path / "copy"))
    change, named = DAMAGE[damage]
    change(copy)
    with expect_refusal(named):
        read_teacher_folder(copy, seconds=9 if damage == "clips longer than known" else SECONDS)


@pytest.mark.slow
def test_programs_compute_what_the_network_does(teacher: Path, network: DiffusersNetwork, tmp_path: Path):
    written = write_program_folder(
        network, make_card(network), cond=make_conditions(teacher, PROMPTS[0]), target=tmp_path / "out", budget=3,
        model_id="a" * 16,
    )  # fmt: skip
    assert written.error < 1e-5  # of latents in four steps, from the programs that were read back
