"""LongCat-Audio as a teacher: its folder, codec, conditions, and a student that its stock pipeline samples alike."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.longcat_vae import LongCatCodec
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.diffusion.preconditions import Flow, ReversedFlow, read_precondition
from presto_core.models.longcat_audio_kind import LongCatAudioKind
from presto_core.models.model_card import ModelCard
from presto_core.models.program_folder import write_program_folder
from presto_core.models.student_folder import StudentFolder, write_student_folder
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import TeacherFolder, read_teacher_folder
from presto_core.models.teacher_import import load_network, run_self_test
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.longcat_audio import reverse_time
from presto_core.samplers.few_step import ping_pong
from presto_core.text.diffusers_encoder import normalize_prompt, read_length
from presto_core.text.encoder import load_text_encoder, text_digest
from tests.support.imported_teachers import BUDGET, encode_prompts, expect_refusal, load_conditioned, load_pipeline
from tests.support.stock_noise import share_noise
from tests.support.tiny_teachers import (
    CHANNELS,
    FRAMES,
    TEXT_DIM,
    TOKENS,
    edit_json,
    make_transformer,
    write_json,
    write_longcat_audio,
)

HOP, RATE_HZ, PROMPT = 16, 8000, 'Slow  "piano" jazz'
SECONDS = FRAMES * HOP / RATE_HZ


def read(folder: Path) -> TeacherFolder:
    return read_teacher_folder(folder, seconds=SECONDS)


@pytest.fixture(scope="module", params=[True, False], ids=["inverted", "plain"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose scheduler inverts sigmas, as the pipeline's own does, or not."""
    folder = tmp_path_factory.mktemp("teacher") / "random-audio"
    return write_longcat_audio(folder, inverted=request.param)


@pytest.fixture(scope="module")
def network(teacher: Path) -> DiffusersNetwork:
    return load_conditioned(read(teacher))


def make_card(network: DiffusersNetwork, teacher: Path) -> ModelCard:
    folder = read(teacher)
    return ModelCard(
        network=network.config.model_dump(), channels=CHANNELS, frames=FRAMES, sigma_data=1.0, mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS, codec={"kind": "diffusers", "sample_rate_hz": RATE_HZ, "hop": HOP, "digest": "0"},
        text={"dim": TEXT_DIM, "max_tokens": TOKENS, "kind": "diffusers", "digest": "0"},
        layer_budget=BUDGET.to_dict(), precondition=folder.precondition, sigma_range=folder.sigma_range,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(teacher: Path, network: DiffusersNetwork) -> StudentFolder:
    """Three of four blocks."""
    return write_student_folder(
        network, make_card(network, teacher), teacher=teacher, target=teacher.parent / "student", budget=3,
        licence="mit", model_id="a" * 16,
    )  # fmt: skip


def make_conditions(folder: Path, *prompts: str) -> Conditioning:
    return encode_prompts(folder, prompts or (PROMPT,), seconds=SECONDS, max_tokens=TOKENS)


def load_own_pipeline(folder: Path) -> Any:
    """Load the stock pipeline with the folder's scheduler, if there is one: it does not load it itself."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    own = folder / "scheduler"
    given = {"scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(str(own))} if own.is_dir() else {}
    return load_pipeline(folder, **given)


def test_a_folder_is_read_and_its_scheduler_sets_the_direction_of_time(teacher: Path, request: pytest.FixtureRequest):
    folder = read(teacher)
    assert (folder.channels, folder.frames, folder.text_tokens, folder.audio_channels) == (CHANNELS, FRAMES, TOKENS, 1)
    assert (folder.clip_seconds, folder.grid, folder.projection) == (SECONDS, None, None)
    kind = "flow_reversed" if "inverted" in request.node.name else "flow"
    assert folder.precondition == {"kind": kind, "time_scale": 1.0}  # whatever the number of time steps
    assert folder.sigma_range == [pytest.approx(1 / 15, rel=1e-4), 999]
    assert read_teacher_folder(teacher, seconds=SECONDS + 1.9e-3).frames == FRAMES  # rounded down, as in the pipeline
    test = run_self_test(folder, network := load_network(folder))
    assert len(test.errors) == 8
    assert test.worst < 5e-6
    assert {name.split(".")[1] for name in network.config.frozen} == {"latent_embed"}  # of latents to continue


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline(teacher: Path, network: DiffusersNetwork):
    from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text

    pipe, x = load_own_pipeline(teacher), torch.zeros(1, CHANNELS, FRAMES)
    expected, lengths = pipe.encode_prompt(_normalize_text(PROMPT), "cpu")
    assert network.conditioner
    cond = make_conditions(teacher)
    ours = network.conditioner(cond, x)
    visible = ours["encoder_attention_mask"]
    assert visible.sum() == lengths == 3
    torch.testing.assert_close(ours["encoder_hidden_states"][visible], expected[0])
    assert torch.equal(ours["latent_cond"], torch.zeros(1, FRAMES, CHANNELS))
    null = network.conditioner(cond.to_unconditional(), x)  # zeros, with the mask of the prompt
    assert torch.equal(null["encoder_attention_mask"], visible)
    assert not null["encoder_hidden_states"].any()
    for nothing in (make_conditions(teacher, ' "" '), None):  # one token of zeros
        null = network.conditioner(nothing, x)
        assert null["encoder_attention_mask"].sum() == null["encoder_attention_mask"][:, 0].sum() == 1
        assert not null["encoder_hidden_states"].any()


def test_prompts_are_normalized_as_in_the_pipeline(teacher: Path):
    from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text

    for prompt in (PROMPT, "“Rock”\n\tÄND  ‘roll’ ", "", 'x"y'):
        assert normalize_prompt(prompt) == _normalize_text(prompt)
    encoder = load_text_encoder("diffusers", path=str(teacher), max_tokens=TOKENS)
    assert (encoder.dim, encoder.max_tokens) == (TEXT_DIM, TOKENS)
    assert encoder.digest == text_digest("diffusers", path=str(teacher), max_tokens=TOKENS)
    assert encoder.find_cut_text("A " * TOKENS + '"Slow" PIANO') == "slow piano"


def test_tokens_are_as_many_as_the_pipeline_reads(teacher: Path, tmp_path: Path):
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    for length, expected in ((None, 512), (10**30, 512), (32769, 512), (32768, 32768), (77, 77)):
        edit_json(other / "tokenizer/tokenizer_config.json", model_max_length=length)
        assert read_length(other) == expected


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_or_padding(teacher: Path):
    """The stock transformer's text convolution sums over padding; ours gives what it gives without any."""
    network, cond = load_network(read(teacher)).eval(), make_conditions(teacher, PROMPT, "a")
    x, time = torch.randn(2, CHANNELS, FRAMES, generator=torch.Generator().manual_seed(2)), torch.tensor([0.3, 0.7])
    together, stock, changed = network(x, time, cond), load_own_pipeline(teacher).transformer, 0.0
    for row, length in ((0, 3), (1, 1)):
        one = slice(row, row + 1)
        short = replace(cond.rows(one), tokens=cond.tokens[one, :length], mask=cond.mask[one, :length])
        for part in (cond.rows(one), short):
            torch.testing.assert_close(network(x[one], time[one], part), together[one], rtol=1e-5, atol=2e-6)
        alone, padded = (
            stock(x[one].transpose(1, 2), states, mask, time[one], latent_cond=torch.zeros(1, FRAMES, CHANNELS)).sample
            for states, mask in ((short.tokens, short.mask), (cond.tokens[one], cond.mask[one]))
        )
        torch.testing.assert_close(alone.transpose(1, 2), together[one], rtol=1e-5, atol=2e-6)
        changed = max(changed, float((padded - alone).abs().max()))
    assert changed > 1e-3  # so that it matters


@torch.no_grad()
def test_time_that_runs_the_other_way_is_the_same_function():
    model = make_transformer("LongCatAudioDiTTransformer").double()
    twin = copy.deepcopy(model)
    reverse_time(twin)
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(1, FRAMES, CHANNELS, generator=rng, dtype=torch.float64)
    states, mask = torch.randn(1, 5, TEXT_DIM, generator=rng, dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool)
    for t in (0.0, 0.25, 0.7, 1.0):
        ahead, back = (torch.tensor([value], dtype=torch.float64) for value in (t, 1 - t))
        torch.testing.assert_close(twin(x, states, mask, ahead).sample, -model(x, states, mask, back).sample)
        assert (twin(x, states, mask, ahead).sample - model(x, states, mask, ahead).sample).abs().max() > 0.01
    reverse_time(twin)
    torch.testing.assert_close(twin.state_dict(), model.state_dict())


def test_the_codec_is_the_folders_and_parts_are_the_whole(teacher: Path):
    codec, vae = load_codec("diffusers", path=str(teacher)), load_own_pipeline(teacher).vae
    assert isinstance(codec, LongCatCodec)
    assert (codec.sample_rate_hz, codec.hop, codec.channels, codec.audio_channels) == (RATE_HZ, HOP, CHANNELS, 1)
    audio = torch.randn(1, 1, HOP * 60 + 5, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(audio)
    assert latents.shape == (1, CHANNELS, 60)
    with torch.no_grad():
        expected = vae.encode(audio[..., : HOP * 60], sample_posterior=False).latents
        torch.testing.assert_close(latents, expected)
        whole = vae.decode(latents).sample
    assert whole.shape == (1, 1, HOP * 60)
    codec.chunk_frames = 7
    torch.testing.assert_close(codec.decode(latents), whole, rtol=0, atol=2e-5 * float(whole.abs().max()))
    codec.margin_frames = 1
    assert (codec.decode(latents) - whole).abs().max() > 1e-3 * whole.abs().max()  # the margin is needed


def test_strides_that_do_not_make_the_hop_or_lose_samples_are_refused(teacher: Path, tmp_path: Path):
    from diffusers import LongCatAudioDiTVae

    other = Path(shutil.copytree(teacher / "vae", tmp_path / "vae"))
    edit_json(other / "config.json", strides=[4])  # the class repeats the last one
    assert load_codec("diffusers", path=str(other)).hop == HOP
    edit_json(other / "config.json", downsampling_ratio=8)
    with pytest.raises(CodecError, match=r"downsampling_ratio=8 and strides \[4, 4\], whose product is 16"):
        load_codec("diffusers", path=str(other))
    LongCatAudioDiTVae(
        channels=16, c_mults=[1], strides=[3], latent_dim=8, encoder_latent_dim=16, downsampling_ratio=3
    ).save_pretrained(str(tmp_path / "odd"))
    with pytest.raises(CodecError, match=r"loses samples at strides \[3\]"):
        load_codec("diffusers", path=str(tmp_path / "odd"))


@torch.inference_mode()
def sample(
    network: DiffusersNetwork, kind: dict[str, Any], folder: Path, sigmas: list[float], budget: int | None
) -> Tensor:
    """Sample with our own ping-pong, from the noise that the pipeline draws too."""
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(1, CHANNELS, FRAMES, generator=rng)
    denoise = EDMDenoiser(network, read_precondition(kind))
    levels, fixed = torch.tensor(sigmas, dtype=torch.float64), None if budget is None else lambda sigma: budget
    return ping_pong(denoise, noise, levels, make_conditions(folder), generator=rng, budget=fixed)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_and_an_import_give_our_samples(
    teacher: Path, network: DiffusersNetwork, student: StudentFolder, steps: int
):
    own = read(teacher).precondition
    expected = sample(network, own, teacher, student.sigmas[steps], 3)
    pipe = load_own_pipeline(student.path)
    call = {name: float(value) for name, value in (word.split("=") for word in student.call.split(", "))}
    with share_noise(pipe, torch.Generator().manual_seed(5)):
        stock = pipe(PROMPT, num_inference_steps=steps, output_type="latent", **call).audios.transpose(1, 2)
    torch.testing.assert_close(stock, expected, rtol=0, atol=5e-5)
    folder = read(student.path)
    imported = load_network(folder).eval()
    assert imported.depth == 3
    again = sample(imported, folder.precondition, student.path, student.sigmas[steps], None)
    torch.testing.assert_close(again, expected, rtol=0, atol=5e-5)
    assert (sample(network, own, teacher, student.sigmas[steps], 4) - expected).abs().max() > 0.05  # the budget matters


@torch.inference_mode()
def test_the_teachers_own_pipeline_with_guidance_gives_our_samples(teacher: Path):
    """Its Euler steps keep x0 and noise of a level: (1 - t) x0 + t eps, which is x0 + sigma eps at our scale."""
    folder, pipe, scale = read(teacher), load_own_pipeline(teacher), 3.0
    torch.manual_seed(5)
    stock = pipe(
        PROMPT, audio_duration_s=SECONDS + 1e-3, num_inference_steps=4, guidance_scale=scale, output_type="latent"
    ).audios
    network = load_network(folder).eval()
    denoise = make_guided_denoiser(EDMDenoiser(network, read_precondition(folder.precondition)), scale)
    x = torch.randn(1, FRAMES, CHANNELS, generator=torch.Generator().manual_seed(5)).transpose(1, 2)
    levels, cond = LongCatAudioKind.grid.list_sigmas(4), make_conditions(teacher)
    eps, x0 = x, torch.zeros_like(x)
    for sigma in levels:
        x = x0 + sigma * eps
        x0 = denoise(x, torch.tensor([sigma]), cond)
        eps = eps if sigma == levels[0] else (x - x0) / sigma  # of t = 1, x is the noise
    assert float(x0.abs().max()) > 0.5
    torch.testing.assert_close(stock.transpose(1, 2), x0, rtol=0, atol=5e-5)


def test_a_student_folder_is_read_as_one(teacher: Path, student: StudentFolder):
    folder = read(student.path)
    assert folder.grid == LongCatAudioKind.grid
    assert folder.precondition == {"kind": "flow", "time_scale": 1.0}  # also of a teacher whose time is reversed
    assert folder.licence == "mit"
    assert run_self_test(folder, load_network(folder)).worst < 5e-6
    assert student.error < 2e-5
    readme = (student.path / "README.md").read_text()
    assert student.call in readme
    assert student.load.replace(str(student.path), "student") in readme
    assert student.sigmas[4] == [1e8, 3, 1, pytest.approx(1 / 3)]


def edit_scheduler(folder: Path, **changes: Any) -> None:
    """Write a scheduler of the default settings but for some."""
    write_json(folder / "scheduler/scheduler_config.json", changes)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other codec": (
        lambda f: edit_json(f / "model_index.json", vae=["diffusers", "AutoencoderOobleck"]),
        "LongCatAudioDiTVae",
    ),
    "other text encoder": (
        lambda f: edit_json(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "UMT5EncoderModel",
    ),
    "other scheduler": (
        lambda f: edit_json(f / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"]),
        "FlowMatchEulerDiscreteScheduler",
    ),
    "other channels": (lambda f: edit_json(f / "transformer/config.json", latent_dim=16), "latent channels 8"),
    "scale without mean": (lambda f: edit_json(f / "vae/config.json", encoder_latent_dim=8), "encoder channels 8"),
    "other strides": (lambda f: edit_json(f / "vae/config.json", strides=[2, 4]), "samples per frame 16"),
    "other text width": (lambda f: edit_json(f / "transformer/config.json", dit_text_dim=32), "text width 24"),
    "other sample rate": (lambda f: edit_json(f / "vae/config.json", sample_rate=44), "sample rate of 44 Hz"),
    "no sample rate": (lambda f: edit_json(f / "vae/config.json", sample_rate=None), "'sample_rate'"),
    "unknown direction": (lambda f: edit_scheduler(f, invert_sigmas="x"), "invert_sigmas=x"),
    "dynamic levels": (lambda f: edit_scheduler(f, use_dynamic_shifting=True), "use_dynamic_shifting"),
    "inverted stochastic steps": (
        lambda f: edit_scheduler(f, stochastic_sampling=True, invert_sigmas=True),
        "invert_sigmas=True",
    ),
    "shifted few-step levels": (
        lambda f: edit_scheduler(f, stochastic_sampling=True, invert_sigmas=False, shift=3.0),
        "shift=3.0",
    ),
    "pickled weights": (
        lambda f: next((f / "text_encoder").glob("*.safetensors")).rename(f / "text_encoder" / "model.bin"),
        "model.bin, a pickle",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_a_teacher_is_refused_by_name(damage: str, teacher: Path, tmp_path: Path):
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    change, named = DAMAGE[damage]
    change(other)
    with expect_refusal(named):
        read(other)


def test_clips_longer_than_the_pipeline_makes_are_refused(teacher: Path):
    assert read_teacher_folder(teacher).clip_seconds == 10
    assert read_teacher_folder(teacher, seconds=30).frames == 30 * RATE_HZ / HOP
    with pytest.raises(TeacherError, match=r"its pipeline knows at most 30 s; model.seconds=31 is too long"):
        read_teacher_folder(teacher, seconds=31)


@pytest.mark.slow
def test_programs_compute_what_the_network_does(teacher: Path, network: DiffusersNetwork, tmp_path: Path):
    card = replace(make_card(network, teacher), layer_budget=None)
    assert isinstance(card.make_precondition(), Flow | ReversedFlow)
    written = write_program_folder(
        network, card, cond=make_conditions(teacher), target=tmp_path / "out", budget=3, model_id="a" * 16
    )
    assert written.error < 1e-5  # of latents in four steps, from the programs that were read back
