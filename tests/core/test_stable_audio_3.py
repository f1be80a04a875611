"""Stable Audio 3 as a teacher: its folder, codec, conditions, and a student that its stock pipeline samples alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from presto_core.audio.load_codec import load_codec
from presto_core.audio.same import SameCodec, count_margin_frames
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Flow
from presto_core.models import teacher_import
from presto_core.models.flow_grid import START, FlowGrid
from presto_core.models.model_card import ModelCard
from presto_core.models.program_folder import write_program_folder
from presto_core.models.student_folder import StudentFolder, write_student_folder
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import load_network, run_self_test
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.samplers.few_step import ping_pong
from presto_core.text.encoder import load_text_encoder, text_digest
from tests.support.imported_teachers import BUDGET, encode_prompts, expect_refusal, load_conditioned, load_pipeline
from tests.support.tiny_teachers import CHANNELS, FRAMES, TEXT_DIM, TOKENS, edit_json, write_stable_audio_3

HOP, RATE_HZ, PROMPT = 16, 8000, "slow piano jazz"
SECONDS = FRAMES * HOP / RATE_HZ
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_audio_3(tmp_path_factory.mktemp("teacher") / "random-audio")


@pytest.fixture(scope="module")
def network(teacher: Path) -> DiffusersNetwork:
    return load_conditioned(read_teacher_folder(teacher, seconds=SECONDS))


@pytest.fixture(scope="module")
def student(teacher: Path, network: DiffusersNetwork) -> StudentFolder:
    """Three of four blocks."""
    card = ModelCard(
        network=network.config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=1.0, mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS, codec={}, text={"dim": TEXT_DIM}, layer_budget=BUDGET.to_dict(),
        precondition={"kind": "flow", "time_scale": 1.0}, sigma_range=[0.1353, 492.7],
    )  # fmt: skip
    target = teacher.parent / "student"
    return write_student_folder(
        network, card, teacher=teacher, target=target, budget=3, licence="apache-2.0", model_id="a" * 16
    )


def make_conditions(folder: Path, prompt: str = PROMPT) -> Conditioning:
    return encode_prompts(folder, [prompt], seconds=SECONDS, max_tokens=TOKENS)


def test_a_folder_is_read_and_its_clips_have_the_requested_length(teacher: Path):
    folder = read_teacher_folder(teacher, seconds=SECONDS)
    assert (folder.channels, folder.frames, folder.text_tokens, folder.audio_channels) == (CHANNELS, FRAMES, TOKENS, 2)
    assert (folder.clip_seconds, folder.grid) == (SECONDS, None)
    assert folder.sigma_range == pytest.approx([0.1353, 492.75], rel=1e-3)
    assert read_teacher_folder(teacher).frames == 10 * RATE_HZ / HOP  # as the pipeline's call
    assert read_teacher_folder(teacher, seconds=SECONDS + 1e-3).frames == FRAMES + 1  # rounded up, as there


def test_the_denoiser_agrees_with_the_folders_own_scheduler(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    folder = read_teacher_folder(teacher, seconds=SECONDS)
    network = load_network(folder)
    test = run_self_test(folder, network)
    assert len(test.errors) == 8
    assert test.worst < 5e-6
    assert {name.split(".")[3] for name in network.config.frozen} == {"to_local_embed"}  # inpainting's
    monkeypatch.setattr(teacher_import, "make_precondition", lambda folder: {"kind": "flow_reversed"})
    with pytest.raises(TeacherError, match="self-test"):
        run_self_test(folder, network)


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline(teacher: Path, network: DiffusersNetwork):
    pipe, x = load_pipeline(teacher), torch.zeros(1, CHANNELS, FRAMES)
    prompt, mask = pipe.encode_prompt(PROMPT, "cpu", 1)
    duration = pipe.encode_duration(SECONDS, "cpu", 1, 1)
    tokens, mask = pipe.prepare_cross_attention(prompt, mask, duration)
    assert network.conditioner
    cond = make_conditions(teacher)
    ours = network.conditioner(cond, x)
    visible = mask.bool()
    torch.testing.assert_close(
        ours["encoder_hidden_states"][visible], tokens[visible]
    )  # the transformer reads no other
    assert torch.equal(ours["encoder_attention_mask"], visible)
    torch.testing.assert_close(ours["global_hidden_states"], duration)
    shorter = replace(cond, tokens=cond.tokens[:, :4], mask=cond.mask[:, :4])  # cut to the longest of a batch
    torch.testing.assert_close(network.conditioner(shorter, x), ours)
    for nothing in (cond.to_unconditional(), None, make_conditions(teacher, "")):
        null = network.conditioner(nothing, x)
        assert null["encoder_attention_mask"].tolist() == [[False] * TOKENS + [True]]
        torch.testing.assert_close(null["global_hidden_states"], duration)
    # of a long recording the clip's length, of its end what is left
    for timing, seconds in (([0.0, 60.0], SECONDS), ([59.97, 60.0], 0.03)):
        made = network.conditioner(replace(cond, timing=torch.tensor([timing])), x)["global_hidden_states"]
        torch.testing.assert_close(made, pipe.encode_duration(seconds, "cpu", 1, 1), rtol=1e-3, atol=1e-3)


def test_the_codec_is_the_folders_and_parts_are_the_whole(teacher: Path):
    codec = load_codec("diffusers", path=str(teacher))
    assert isinstance(codec, SameCodec)
    assert (codec.sample_rate_hz, codec.hop, codec.channels, codec.audio_channels) == (RATE_HZ, HOP, CHANNELS, 2)
    assert codec.margin_frames == 3
    audio = torch.randn(1, 2, HOP * 40 + 5, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(audio)
    assert latents.shape == (1, CHANNELS, 40)
    whole = codec.decode(latents)
    assert whole.shape == (1, 2, HOP * 40)
    codec.chunk_frames = 7
    torch.testing.assert_close(codec.decode(latents), whole, rtol=0, atol=2e-5 * float(whole.abs().max()))
    codec.margin_frames = 1
    assert (codec.decode(latents) - whole).abs().max() > 1e-3  # the margin is needed
    assert torch.equal(codec.encode(audio[:, :1]), codec.encode(audio[:, :1].expand(-1, 2, -1)))
    assert count_margin_frames((16,), (12,), window=1) == 12  # SAME-L
    assert count_margin_frames((4, 2), (4, 3), window=1) == 5  # the outer stack has 2 frames per latent


def test_the_text_encoder_is_the_folders(teacher: Path):
    encoder = load_text_encoder("diffusers", path=str(teacher), max_tokens=TOKENS)
    assert (encoder.dim, encoder.max_tokens) == (TEXT_DIM, TOKENS)
    assert encoder.digest == text_digest("diffusers", path=str(teacher), max_tokens=TOKENS)


@torch.inference_mode()
def sample(network: DiffusersNetwork, folder: Path, sigmas: list[float], budget: int | None) -> Tensor:
    """Sample with our own ping-pong, from the noise that the pipeline draws too."""
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(1, CHANNELS, FRAMES, generator=rng)
    levels, fixed = torch.tensor(sigmas, dtype=torch.float64), None if budget is None else lambda sigma: budget
    return ping_pong(EDMDenoiser(network, Flow()), noise, levels, make_conditions(folder), generator=rng, budget=fixed)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_and_an_import_give_our_samples(
    teacher: Path, network: DiffusersNetwork, student: StudentFolder, steps: int
):
    expected = sample(network, teacher, student.sigmas[steps], 3)
    rng, pipe = torch.Generator().manual_seed(5), load_pipeline(student.path)
    options: dict[str, Any] = {"generator": rng, "output_type": "latent", "duration": SECONDS}
    stock = pipe(PROMPT, num_inference_steps=steps, **options).audios
    torch.testing.assert_close(stock, expected, rtol=0, atol=5e-5)
    imported = load_network(read_teacher_folder(student.path, seconds=SECONDS)).eval()
    assert imported.depth == 3
    again = sample(imported, student.path, student.sigmas[steps], None)
    torch.testing.assert_close(again, expected, rtol=0, atol=5e-5)
    assert (sample(network, teacher, student.sigmas[steps], 4) - expected).abs().max() > 0.05  # the budget matters


def test_a_student_folder_is_read_as_one(student: StudentFolder):
    folder = read_teacher_folder(student.path, seconds=SECONDS)
    assert folder.grid == FlowGrid()
    assert folder.licence == "apache-2.0"
    assert run_self_test(folder, load_network(folder)).worst < 5e-6
    assert student.error < 5e-6
    assert student.call == f"duration={SECONDS:g}"
    assert student.call in (student.path / "README.md").read_text()


def test_levels_are_those_of_the_pipeline():
    from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule

    for steps in (1, 3, 4, 8, 16):
        first, *rest = FlowGrid().list_sigmas(steps)
        times = logsnr_sigma_schedule(steps, -6.2, 2.0)
        assert (first, times[0]) == (START, 1.0)
        assert [sigma / (1 + sigma) for sigma in rest] == pytest.approx(times[1:], rel=1e-12)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing component": (lambda f: shutil.rmtree(f / "duration_embedder"), "lacks duration_embedder"),
    "other codec": (
        lambda f: edit_json(f / "model_index.json", vae=["diffusers", "AutoencoderOobleck"]),
        "AutoencoderSAME",
    ),
    "other channels": (lambda f: edit_json(f / "vae/config.json", latent_dim=16), "latent channels 16"),
    "other text width": (lambda f: edit_json(f / "transformer/config.json", cond_token_dim=32), "text width 24"),
    "other duration": (lambda f: edit_json(f / "transformer/config.json", global_cond_dim=32), "global width 24"),
    "other sample rate": (lambda f: edit_json(f / "vae/config.json", sampling_rate=44), "sample rate of 44 Hz"),
    "clips longer than known": (lambda f: edit_json(f / "duration_embedder/config.json", max_val=0.01), "too long"),
    "inverted levels": (lambda f: edit_json(f / SCHEDULER, invert_sigmas=True), "invert_sigmas=True"),
    "dynamic levels": (lambda f: edit_json(f / SCHEDULER, use_dynamic_shifting=True), "use_dynamic_shifting"),
    "shifted few-step levels": (lambda f: edit_json(f / SCHEDULER, stochastic_sampling=True, shift=3.0), "shift=3.0"),
    "no time scale": (lambda f: edit_json(f / SCHEDULER, num_train_timesteps="x"), "num_train_timesteps=x"),
    "pickled weights": (
        lambda f: next((f / "vae").glob("*.safetensors")).rename(f / "vae" / "model.bin"),
        "model.bin, a pickle",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_a_teacher_is_refused_by_name(damage: str, teacher: Path, tmp_path: Path):
    copy = Path(shutil.copytree(teacher, tmp_path / "copy"))
    change, named = DAMAGE[damage]
    change(copy)
    with expect_refusal(named):
        read_teacher_folder(copy, seconds=SECONDS)


@pytest.mark.parametrize("name", ["StableAudio3DiTModel", "AutoencoderSAME"])
def test_a_class_that_the_installed_diffusers_lacks_is_refused_by_name(
    name: str, teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    import diffusers

    monkeypatch.setattr(diffusers, name, None)
    with pytest.raises(TeacherError, match=rf"{name}.*diffusers {diffusers.__version__}.*newer"):
        read_teacher_folder(teacher, with_weights=False)


def test_a_few_step_release_and_other_time_scales_are_read(teacher: Path, tmp_path: Path):
    copy = Path(shutil.copytree(teacher, tmp_path / "copy"))
    edit_json(copy / SCHEDULER, num_train_timesteps=1000, shift=3.0)
    assert read_teacher_folder(copy).precondition == {"kind": "flow", "time_scale": 1000.0}
    edit_json(copy / SCHEDULER, num_train_timesteps=1, shift=1.0, stochastic_sampling=True)
    assert read_teacher_folder(copy).grid == FlowGrid()


@pytest.mark.slow
def test_programs_compute_what_the_network_does(teacher: Path, network: DiffusersNetwork, tmp_path: Path):
    card = ModelCard(
        network=network.config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=1.0, mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS, codec={"kind": "diffusers", "sample_rate_hz": RATE_HZ, "hop": HOP, "digest": "0"},
        text={"dim": TEXT_DIM, "max_tokens": TOKENS, "kind": "diffusers", "digest": "0"},
        precondition={"kind": "flow", "time_scale": 1.0}, sigma_range=[0.1353, 492.7],
    )  # fmt: skip
    written = write_program_folder(
        network, card, cond=make_conditions(teacher), target=tmp_path / "out", budget=3, model_id="a" * 16
    )
    assert written.error < 1e-5  # of latents in four steps, from the programs that were read back
