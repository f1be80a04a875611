"""Teachers from diffusers folders: what is read, what is refused before it is loaded, and the self-test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.diffusion.preconditions import read_precondition
from presto_core.models import teacher_import
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import find_frozen_weights, load_network, make_test_inputs, run_self_test
from presto_core.text.encoder import TextError, load_text_encoder, text_digest
from tests.support.imported_teachers import expect_refusal
from tests.support.tiny_teachers import CHANNELS, FRAMES, TEXT_DIM, TOKENS, edit_json, write_stable_audio


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_audio(tmp_path_factory.mktemp("teacher") / "random-audio")


@pytest.fixture
def changed(teacher: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(teacher, tmp_path / "copy"))


def test_a_folder_is_read_by_its_own_settings(teacher: Path):
    folder = read_teacher_folder(teacher)
    assert (folder.channels, folder.frames, folder.text_tokens) == (CHANNELS, FRAMES, TOKENS)
    assert folder.clip_seconds == FRAMES * 64 / 8000
    assert folder.sigma_range == [0.3, 500.0]
    assert folder.licence == "apache-2.0"
    assert [row["component"] for row in folder.describe() if row["bytes"]] == [
        "transformer", "projection_model", "vae", "text_encoder",
    ]  # fmt: skip


def test_the_denoiser_agrees_with_the_folders_own_scheduler(teacher: Path):
    folder = read_teacher_folder(teacher)
    test = run_self_test(folder, load_network(folder))
    assert len(test.errors) == 8
    assert [min(map(float, test.errors)), max(map(float, test.errors))] == [0.3, 500.0]
    assert test.worst < 1e-5


def test_the_self_test_notices_another_parameterisation(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    folder = read_teacher_folder(teacher)
    monkeypatch.setattr(teacher_import, "make_precondition", lambda folder: {"kind": "edm"})
    with pytest.raises(TeacherError, match="self-test"):
        run_self_test(folder, load_network(folder))


def test_fixed_and_unused_weights_do_not_train(teacher: Path):
    network = load_network(read_teacher_folder(teacher))
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert "transformer.time_proj.weight" in still
    assert {name for name in still if name.startswith("transformer.")} == {"transformer.time_proj.weight"}
    assert {name for name, _ in network.named_parameters() if name.startswith("conditioner.")} <= still
    assert find_frozen_weights(network) == network.config.frozen


def test_conditions_are_those_of_the_teachers_pipeline(teacher: Path):
    from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    folder = read_teacher_folder(teacher)
    network: Any = load_network(folder)
    projection = network.conditioner.projection
    encoder = T5EncoderModel.from_pretrained(teacher / "text_encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(teacher / "tokenizer")
    pipeline = StableAudioPipeline.__new__(StableAudioPipeline)
    vars(pipeline)["_internal_dict"] = {}
    for name, part in (("text_encoder", encoder), ("tokenizer", tokenizer), ("projection_model", projection)):
        object.__setattr__(pipeline, name, part)
    with torch.no_grad():
        prompt = StableAudioPipeline.encode_prompt(pipeline, "slow piano", "cpu", False)
        start, end = StableAudioPipeline.encode_duration(pipeline, 0.0, 0.2, "cpu", False, 1)
        text = load_text_encoder("diffusers", path=str(teacher), max_tokens=TOKENS).encode(["slow piano"])
        cond = replace(
            make_test_inputs(network).cond, tokens=text.tokens, mask=text.mask, timing=torch.tensor([[0.0, 0.2]])
        )
        x = torch.zeros(1, CHANNELS, FRAMES)
        ours = network.conditioner(cond, x)
        torch.testing.assert_close(ours["encoder_hidden_states"], torch.cat([prompt, start, end], 1))
        torch.testing.assert_close(ours["global_hidden_states"], torch.cat([start, end], 2))
        # classifier-free guidance of the pipeline: zeros for text and timing tokens, the global vector stays
        null = network.conditioner(cond.to_unconditional(), x)
        assert not null["encoder_hidden_states"].any()
        torch.testing.assert_close(null["global_hidden_states"], torch.cat([start, end], 2))
        shorter = replace(cond, tokens=cond.tokens[:, :4], mask=cond.mask[:, :4])  # cut to the longest of a batch
        torch.testing.assert_close(network.conditioner(shorter, x), ours)


def test_sharded_and_half_precision_weights_are_read(teacher: Path, changed: Path):
    expected = load_network(read_teacher_folder(teacher)).state_dict()
    folder = changed / "transformer"
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, listed in parts.items():
        save_file({name: state[name].bfloat16() for name in listed}, folder / file)
    index = {"weight_map": {name: file for file, listed in parts.items() for name in listed}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    found = load_network(read_teacher_folder(changed)).state_dict()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        rounded = value.bfloat16().float() if name.startswith("transformer.") else value
        assert torch.equal(found[name], rounded)


def replace_weights(folder: Path, name: str) -> None:
    next(folder.glob("*.safetensors")).unlink()
    (folder / name).write_bytes(b"\x80\x02.")


def leave_checkpoint(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "model.ckpt").write_bytes(b"\x80\x02.")


def edit(file: str, **changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / file, **changes)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "not a folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
    "one checkpoint": (
        leave_checkpoint,
        "model.ckpt, a pickle",
    ),
    "pickled weights": (
        lambda f: replace_weights(f / "transformer", "diffusion_pytorch_model.bin"),
        "diffusion_pytorch_model.bin, a pickle",
    ),
    "no weights": (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "vae holds no weights"),
    "missing component": (lambda f: shutil.rmtree(f / "projection_model"), "lacks projection_model"),
    "component not named": (edit("model_index.json", vae=None), "lacks vae"),
    "unknown transformer": (
        edit("model_index.json", transformer=["diffusers", "UNet2DModel"]),
        "UNet2DModel",
    ),
    "class of another library": (
        edit("model_index.json", text_encoder=["evil_module", "T5EncoderModel"]),
        "evil_module",
    ),
    "wrong text encoder": (
        edit("model_index.json", text_encoder=["transformers", "ClapTextModelWithProjection"]),
        "Clap",
    ),
    "wrong scheduler": (
        edit("model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"]),
        "EDMDPM",
    ),
    "pipeline with code": (edit("model_index.json", _class_name=["pipeline", "Mine"]), "code of its own"),
    "extra component": (
        edit("model_index.json", safety=["diffusers", "SafetyChecker"]),
        "safety",
    ),
    "index and settings differ": (edit("vae/config.json", _class_name="AutoencoderKL"), "AutoencoderKL"),
    "other channels": (edit("vae/config.json", decoder_input_channels=16), "latent channels 16"),
    "other text width": (edit("text_encoder/config.json", d_model=32), "text width 32"),
    "other sample rate": (edit("vae/config.json", sampling_rate=44), "sample rate of 44 Hz"),
    "clips longer than known": (edit("transformer/config.json", sample_size=10**6), "another sample rate"),
    "settings without a key": (edit("vae/config.json", sampling_rate=None), "sampling_rate"),
    "other prediction": (
        edit("scheduler/scheduler_config.json", prediction_type="epsilon"),
        "prediction_type=epsilon",
    ),
    "reversed range": (edit("scheduler/scheduler_config.json", sigma_max=0.1), "sigma_max=0.1"),
    "broken settings": (lambda f: (f / "vae/config.json").write_text("{"), "not JSON"),
    "no text length": (edit("tokenizer/tokenizer_config.json", model_max_length=None), "model_max_length"),
    "licence without derivatives": (
        lambda f: (f / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n"),
        "cc-by-nc-nd-4.0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_a_teacher_is_refused_by_name(damage: str, changed: Path):
    change, named = DAMAGE[damage]
    change(changed)
    with expect_refusal(named):
        read_teacher_folder(changed)


def test_a_length_is_refused_where_all_clips_have_one(teacher: Path):
    with pytest.raises(TeacherError, match=r"model\.seconds=3"):
        read_teacher_folder(teacher, seconds=3)


def test_settings_are_checked_before_weights_are_there(changed: Path):
    for name in ("transformer", "projection_model", "vae", "text_encoder"):
        next((changed / name).glob("*.safetensors")).unlink()
    assert read_teacher_folder(changed, with_weights=False).channels == CHANNELS
    with pytest.raises(TeacherError, match="no weights"):
        read_teacher_folder(changed)
    edit_json(changed / "vae" / "config.json", decoder_input_channels=16)
    with pytest.raises(TeacherError, match="latent channels"):
        read_teacher_folder(changed, with_weights=False)


def test_a_permission_replaces_the_licence(changed: Path):
    (changed / "README.md").write_text("---\nlicense: other\nlicense_name: no-derivatives\n---\n")
    with pytest.raises(TeacherError, match="no-derivatives"):
        read_teacher_folder(changed)
    assert (
        read_teacher_folder(changed, licence="written permission of 2026-11").licence == "written permission of 2026-11"
    )
    (changed / "README.md").unlink()
    assert read_teacher_folder(changed).licence == ""
    (changed / "LICENSE.md").write_text("\nStability AI Community License Agreement\n")
    assert read_teacher_folder(changed).licence == "Stability AI Community License Agreement"


def test_damaged_weights_are_refused_by_component(changed: Path):
    path = changed / "projection_model" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "text" in name or "start" in name}, path)
    with pytest.raises(TeacherError, match="projection_model"):
        load_network(read_teacher_folder(changed))
    state["start_number_conditioner.time_positional_embedding.1.bias"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(TeacherError, match="not finite"):
        load_network(read_teacher_folder(changed))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TeacherError, match="projection_model"):
        load_network(read_teacher_folder(changed))


def test_codec_and_text_encoder_of_the_folder(teacher: Path, changed: Path):
    codec = load_codec("diffusers", path=str(teacher))
    assert (codec.sample_rate_hz, codec.hop, codec.channels, codec.audio_channels) == (8000, 64, CHANNELS, 2)
    assert codec.digest == load_codec("oobleck", path=str(teacher / "vae")).digest
    text = load_text_encoder("diffusers", path=str(teacher), max_tokens=TOKENS)
    assert (text.dim, text.max_tokens) == (TEXT_DIM, TOKENS)
    assert text.digest == text_digest("diffusers", path=str(teacher), max_tokens=TOKENS)
    embedded = text.encode(["slow piano", ""])
    assert embedded.tokens.shape == (2, TOKENS, TEXT_DIM)
    assert embedded.mask.any(dim=1).tolist() == [True, False]
    with pytest.raises(TextError, match=f"set it to {TOKENS}"):
        text_digest("diffusers", path=str(teacher), max_tokens=40)
    edit_json(changed / "vae/config.json", _class_name="AutoencoderKL")
    edit_json(changed / "model_index.json", text_encoder=["transformers", "GPT2Model"])
    with pytest.raises(CodecError, match="AutoencoderKL"):
        load_codec("diffusers", path=str(changed))
    with pytest.raises(TextError, match="GPT2Model"):
        text_digest("diffusers", path=str(changed), max_tokens=TOKENS)
    for load in (lambda: load_codec("diffusers"), lambda: text_digest("diffusers", max_tokens=TOKENS)):
        with pytest.raises((CodecError, TextError), match="path is empty"):
            load()


def test_the_card_of_the_family_is_v_cosine(teacher: Path):
    assert read_precondition(teacher_import.make_precondition(read_teacher_folder(teacher))).kind == "v_cosine"
