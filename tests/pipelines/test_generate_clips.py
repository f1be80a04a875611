"""Generated clips: one file per prompt, model and setting, of exact length and without clicks, and never NaN."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from pipelines.inference.clip_audio import finish_audio
from pipelines.inference.clip_files import make_clip_name, write_clip
from pipelines.inference.generator import GeneratedClip, Generator, load_generator
from pipelines.inference.mlflow_model import PROMPT, MusicModel
from pipelines.inference.prompts import make_conditions, parse_prompt
from pipelines.stages import clip_output, generate
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import GenerateStage
from presto_core.diffusion.conditioning import key_index
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR
from tests.support.pretrained_models import TOKENS, export_untrained

NAME, RATE_HZ = DEFAULT_GENERATOR, 44100
LONG = "slow " * 20  # more words than TOKENS


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    export_untrained(str(folder / "store"), folder, name=NAME)
    return folder


@pytest.fixture(autouse=True)
def in_package(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRESTO_PRETRAINED", str(package))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def generator(package: Path) -> Generator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRESTO_PRETRAINED", str(package))
        return load_generator(NAME)


def run(prompts: list[str], **settings: Any) -> list[generate.ClipFiles]:
    keys = {f"generate.{name}": value for name, value in settings.items()}
    own: dict[str, Any] = {"generate.steps": 1, "inputs.generator": NAME, "generate.prompts": prompts}
    return generate.run(load_config(GenerateStage, None, own | keys))


def make_clip(prompt: str = "piano", **changes: Any) -> GeneratedClip:
    audio = np.full((1, 8), 0.5, np.float32)
    return replace(GeneratedClip(prompt, audio, RATE_HZ, model_id="a" * 16, steps=4, seed=0), **changes)


# --- files


def test_every_prompt_has_a_file_of_its_own_in_any_script():
    alike = "a very long prompt about a piano that plays slowly in a large hall "
    prompts = [
        "ピアノ",
        "バイオリン",
        "钢琴",
        "Скрипка",
        "!!!",
        "???",
        alike + "at night",
        alike + "at noon",
        "a b",
        "a-b",
        "A B",
    ]
    clips = run(prompts)
    assert len({clip.wav for clip in clips}) == len(prompts)
    assert all(clip.wav.is_file() for clip in clips)
    assert clips[0].wav.name.startswith("ピアノ-1steps-seed0-")


def test_what_changes_a_clip_changes_its_name_and_nothing_else_does():
    first = make_clip_name(make_clip())
    others: list[dict[str, Any]] = [
        {"prompt": "Piano"}, {"model_id": "b" * 16}, {"steps": 5}, {"seed": 1}, {"tempo_bpm": 90.0}, {"key": "A minor"},
        {"schedule": ScheduleConfig(rho=3)}, {"audio": np.zeros((1, 9), np.float32)},
    ]  # fmt: skip
    names = [make_clip_name(make_clip(**change)) for change in others]
    assert len({first, *names}) == len(others) + 1
    assert make_clip_name(make_clip()) == first


@pytest.mark.parametrize("prompt", ["界" * 400, "𝄞𠀀" * 200, "../../etc/passwd", "a/b\\c:d", "x" * 1000, " . "])
def test_any_prompt_gives_a_name_that_file_systems_take(prompt: str, tmp_path: Path):
    path = write_clip(make_clip(prompt), tmp_path)
    assert path.parent == tmp_path
    assert len(path.name.encode()) < 200
    assert path.name[0] not in ".-"


def test_the_same_clip_again_is_one_file_with_the_same_bytes():
    (first,) = run(["piano"])
    content = first.wav.read_bytes()
    (second,) = run(["piano"])
    assert second.wav == first.wav
    assert second.wav.read_bytes() == content
    assert sorted(p.suffix for p in first.wav.parent.iterdir()) == [".png", ".wav"]  # and no part of a file


def test_another_clip_of_the_same_name_is_kept_and_the_new_one_gets_a_number(tmp_path: Path):
    """As when other software or another machine gives other bits for the same settings."""
    old, new = make_clip(), make_clip(audio=np.full((1, 8), 0.25, np.float32))
    path = write_clip(old, tmp_path)
    content = path.read_bytes()
    assert write_clip(new, tmp_path).name == f"{path.stem}-2.wav"
    assert write_clip(new, tmp_path).name == f"{path.stem}-2.wav"
    assert path.read_bytes() == content
    path.write_bytes(b"no audio")
    assert write_clip(old, tmp_path).name == f"{path.stem}-3.wav"
    assert path.read_bytes() == b"no audio"


def test_a_repeated_prompt_is_one_clip_and_counted(capsys: pytest.CaptureFixture[str]):
    assert len(run(["piano", "piano", "harp"])) == 2
    assert "1 repeated prompts" in " ".join(capsys.readouterr().err.split())


def test_an_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"generate\.output=.*taken"):
        run(["piano"], output=str(tmp_path / "taken"))


def test_a_wav_holds_the_prompt_and_what_it_was_made_with():
    prompt = "ピアノ, 120.5 bpm, Dm, costs $5 in $_x 😀"
    (clip,) = run([prompt], seed=7)
    with soundfile.SoundFile(clip.wav) as file:
        assert file.title == prompt
        details = json.loads(file.comment)
    assert details["prompt"] == prompt
    assert (details["steps"], details["seed"], details["samples"]) == (1, 7, round(clip.seconds * RATE_HZ))
    assert (details["tempo_bpm"], details["key"]) == (120.5, "D minor")
    assert len(details["model"]) == 16
    assert details["presto"]


@pytest.mark.parametrize("letters", [1, 2, 5_000, 300_000])
def test_a_prompt_of_any_length_is_whole_in_the_wav(letters: int, tmp_path: Path):
    clip = make_clip("é" * letters)
    path = write_clip(clip, tmp_path)
    samples, _ = soundfile.read(path)
    assert np.array_equal(samples, clip.audio[0])
    with av.open(str(path)) as container:  # ffmpeg reads entries of any length, libsndfile those below 2 kB
        assert json.loads(container.metadata["comment"])["prompt"] == clip.prompt
        assert container.metadata["title"].startswith("é")
    assert int.from_bytes(path.read_bytes()[4:8], "little") == path.stat().st_size - 8


# --- audio


@pytest.mark.parametrize("seconds", [1.0, 10.0, 0.33, 2.00001, 0.001])
def test_a_clip_has_exactly_the_length_requested(generator: Generator, seconds: float):
    (clip,) = generator.generate("piano", steps=1, seconds=seconds)
    assert clip.audio.shape[1] == round(seconds * RATE_HZ)


def test_both_ends_of_a_clip_fade_within_a_few_milliseconds_and_the_rest_is_untouched():
    audio = np.full((2, RATE_HZ), 0.8, np.float32)
    done, gain_db = finish_audio(audio, RATE_HZ, seconds=None)
    assert gain_db == 0
    fade = math.ceil(0.005 * RATE_HZ)
    assert (done[:, [0, -1]] == 0).all()
    assert (np.diff(done[:, : fade + 1]) > 0).all()
    assert np.array_equal(done, done[:, ::-1])
    assert (done[:, fade:-fade] == audio[0, 0]).all()
    assert abs(np.diff(done)).max() < 0.8 * math.pi / 2 / fade * 1.01  # steepest step of half a cosine
    assert finish_audio(audio[:, :1], RATE_HZ, seconds=None)[0].shape == (2, 1)


def test_a_clip_that_would_clip_is_turned_down_and_keeps_its_shape():
    wave = np.sin(np.linspace(0, 300, RATE_HZ, dtype=np.float32))[None]
    quiet, loud = (finish_audio(level * wave, RATE_HZ, seconds=None) for level in (np.float32(0.5), np.float32(2)))
    assert quiet[1] == 0
    assert loud[1] == pytest.approx(20 * math.log10(10 ** (-1 / 20) / 2), abs=0.01)
    assert np.abs(loud[0]).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)
    np.testing.assert_allclose(loud[0] * 10 ** (-loud[1] / 20), 4 * quiet[0], atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float):
    audio = np.zeros((1, 100), np.float32)
    audio[0, 50] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        finish_audio(audio, RATE_HZ, seconds=None)


def test_a_model_that_gives_nan_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = load_generator(NAME)
    with torch.no_grad():
        for parameter in broken.model.network.parameters():
            parameter.fill_(math.nan)
    monkeypatch.setattr(clip_output, "open_generator", lambda uri, **_: broken)
    with pytest.raises(UserError, match="NaN or infinite"):
        run(["piano"])
    assert not list(tmp_path.rglob("*.wav"))


def test_the_ends_of_the_range_of_noise_levels_give_music_without_nan(generator: Generator):
    for schedule in (ScheduleConfig(sigma_max=1e4), ScheduleConfig(sigma_min=1e-6, rho=0.1), ScheduleConfig(rho=1e3)):
        (clip,) = generator.generate("piano", steps=3, schedule=schedule)
        assert np.isfinite(clip.audio).all()


# --- settings and prompts


@pytest.mark.parametrize(
    "setting",
    [
        "generate.schedule.sigma_max=1e38", "generate.schedule.sigma_max=.inf", "generate.schedule.sigma_max=.nan",
        "generate.schedule.sigma_min=0", "generate.schedule.rho=1e-9", "generate.schedule.rho=1e9", "generate.seed=-1",
        "generate.seed=9223372036854775808", "generate.seconds=.inf", "generate.seconds=-1", "generate.seconds=1e9",
        "generate.tempo_bpm=0", "generate.tempo_bpm=.nan", "generate.steps=0", "generate.steps=1000000",
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_by_name_in_one_line(setting: str):
    with pytest.raises(ConfigError) as caught:
        load_config(GenerateStage, None, [setting])
    assert setting.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_levels_in_the_wrong_order_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"sigma_min=90 must be below sigma_max=80"):
        load_config(GenerateStage, None, ["generate.schedule.sigma_min=90"])


def test_the_whole_range_of_schedules_gives_finite_levels():
    from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas

    for rho in (0.1, 7.0, 1000.0):
        for levels in (few_step_sigmas, karras_sigmas):
            assert torch.isfinite(levels(8, sigma_min=1e-6, sigma_max=1e4, rho=rho)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1"), ({"seconds": math.inf}, "seconds=inf"), ({"seconds": math.nan}, "seconds=nan"),
        ({"tempo_bpm": 1200.0}, r"tempo_bpm: 1200 bpm.*20 to 400"), ({"prompts": ["piano, 1200 bpm"]}, "1200 bpm"),
        ({"prompts": ["x", None]}, "prompt 2 is None"), ({"prompts": [math.nan]}, "prompt 1 is nan"),
        ({"prompts": ["bad \ud800"]}, r"'bad \\ud800'.*character 5"),
    ],
)  # fmt: skip
def test_a_wrong_request_from_python_is_one_message(generator: Generator, arguments: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        generator.generate(**(dict[str, Any](prompts=["piano"], steps=1) | arguments))


def test_one_text_is_one_prompt(generator: Generator):
    (clip,) = generator.generate("piano", steps=1)
    assert clip.prompt == "piano"
    assert np.array_equal(clip.audio, generator.generate(["piano"], steps=1)[0].audio)
    assert generator.generate([], steps=1) == []


@pytest.mark.parametrize("missing", [math.nan, None, pd.NA])
def test_a_missing_prompt_of_a_table_is_refused_with_its_row(generator: Generator, missing: Any):
    model = MusicModel()
    model.generator = generator
    with pytest.raises(UserError, match="prompt 2 is"):
        model.predict(None, pd.DataFrame({PROMPT: ["piano", missing]}), {"steps": 1})


def test_tempo_and_key_of_the_prompt_are_conditions_and_settings_come_first(generator: Generator):
    prompts = ["techno in d minor, 120.5 BPM", "solo piano"]
    cond = make_conditions(generator.model, prompts, [parse_prompt(prompt) for prompt in prompts])
    assert cond.tempo_bpm[0] == 120.5
    assert torch.isnan(cond.tempo_bpm[1])
    assert cond.key.tolist() == [key_index("D minor"), key_index(None)]
    named = parse_prompt("in Dm, 90 bpm", tempo_bpm=100, key="B♭ major")
    assert (named.tempo_bpm, named.key) == (100, key_index("Bb major"))


def test_other_spellings_of_one_key_give_the_same_condition(generator: Generator):
    keys = {generator.generate(f"piano in {key}", steps=1)[0].key for key in ("C sharp minor", "c# min", "C♯m")}
    assert keys == {"C# minor"}


def test_the_end_of_a_long_prompt_that_has_no_effect_is_printed(
    generator: Generator, capsys: pytest.CaptureFixture[str]
):
    one, other, short = generator.generate([f"{LONG}loud drums", f"{LONG}soft harp", "soft harp"], steps=1)
    assert np.array_equal(one.audio, other.audio)
    assert one.cut_text.endswith("slow loud drums")
    assert short.cut_text == ""
    lines = [line for line in capsys.readouterr().err.splitlines() if f"reads {TOKENS} tokens" in line]
    assert len(lines) == 2
    assert "soft harp'" in lines[1]
