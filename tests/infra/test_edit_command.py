"""`presto edit` and the forms of `presto generate`: what arguments become, and which are refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from typer.testing import CliRunner, Result

from infra.cli.main import app
from pipelines.stages import edit, generate
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import EditStage, GenerateStage
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR
from tests.support.pretrained_models import export_untrained


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, args, env={"COLUMNS": "200", "TERM": "dumb"})


def resolve(*args: str) -> EditStage:
    result = invoke("edit", *args, "--dry-run")
    assert result.exit_code == 0, result.output
    return EditStage.model_validate(yaml.safe_load(result.stdout))


def test_file_prompt_and_options_become_settings():
    config = resolve(
        "song.wav", "harp, 90 bpm", "--region", "0.5:1", "--region", "2:3.5", "--strength", "0.7", "edit.seed=3"
    )
    assert (config.edit.file, config.edit.prompt, config.edit.seed) == ("song.wav", "harp, 90 bpm", 3)
    assert (config.edit.regions, config.edit.strength) == (("0.5:1", "2:3.5"), 0.7)
    longer = resolve("song.wav", "--prompt", "a=b", "--extend", "6", "--at", "start", "--model", "champion")
    assert (longer.edit.prompt, longer.edit.extend, longer.edit.at) == ("a=b", 6.0, "start")
    assert longer.inputs.generator == "champion"


def test_a_file_may_look_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.wav").write_bytes(b"")
    assert resolve("a=b.wav", "harp").edit.file == "a=b.wav"


@pytest.mark.parametrize("args", [(), ("song.wav",), ("song.wav", "harp", "horn"), ("--prompt", "harp")])
def test_anything_but_one_file_and_one_prompt_is_a_wrong_usage(args: tuple[str, ...]):
    result = invoke("edit", *args)
    assert result.exit_code == 2
    assert "one file and one prompt" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"edit.regions": ["4.5:2"]}, "4.5:2"), ({"edit.regions": ["2-3"]}, "2-3"),
        ({"edit.regions": ["nan:3"]}, "nan:3"),
        ({"edit.strength": 1.5}, "strength"), ({"edit.extend": 0}, "extend"), ({"edit.extend": 1e9}, "extend"),
        ({"edit.extend": 3, "edit.strength": 0.5}, "extend"), ({"edit.at": "start"}, "at=start"),
    ],
)  # fmt: skip
def test_settings_of_an_edit_that_do_not_fit_are_refused(overrides: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        load_config(EditStage, None, overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"generate.sections": ["0:piano"]}, "seconds"),
        ({"generate.sections": ["piano"], "generate.seconds": 9}, "piano"),
        ({"generate.sections": ["0:piano"], "generate.seconds": 9, "generate.loop": True}, "loop"),
    ],
)  # fmt: skip
def test_settings_of_a_piece_that_do_not_fit_are_refused(overrides: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        load_config(GenerateStage, None, overrides)


def test_sections_and_loops_are_options_of_generate():
    result = invoke("generate", "--section", "0:piano", "--section", "3:harp: slow", "generate.seconds=6", "--dry-run")
    assert yaml.safe_load(result.stdout)["generate"]["sections"] == ["0:piano", "3:harp: slow"]
    assert yaml.safe_load(invoke("generate", "harp", "--loop", "--dry-run").stdout)["generate"]["loop"] is True


def test_the_stages_write_edits_loops_and_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    export_untrained(str(tmp_path / "store"), tmp_path / "package", name=DEFAULT_GENERATOR)
    monkeypatch.setenv("PRESTO_PRETRAINED", str(tmp_path / "package"))
    monkeypatch.chdir(tmp_path)
    samples = np.rint(np.random.default_rng(0).normal(0, 3000, 44100)).astype(np.int16)
    soundfile.write("song.wav", samples, 44100)
    own = {"inputs.generator": DEFAULT_GENERATOR}
    song = {**own, "edit.file": "song.wav", "edit.prompt": "harp", "edit.steps": 1}
    changed = edit.run(load_config(EditStage, None, {**song, "edit.regions": ["0.3:0.6"]}))
    stored = soundfile.read(changed.wav, dtype="int16")[0]
    assert np.array_equal(stored[:13230], samples[:13230])
    assert np.array_equal(stored[26460:], samples[26460:])
    assert "0.70 s kept bit for bit" in " ".join(capsys.readouterr().err.split())
    longer = edit.run(load_config(EditStage, None, {**song, "edit.extend": 0.5, "edit.at": "start"}))
    assert np.array_equal(soundfile.read(longer.wav, dtype="int16")[0][22050:], samples)
    with pytest.raises(UserError, match=r"region 0\.3:1\.6"):
        edit.run(load_config(EditStage, None, {**song, "edit.regions": ["0.3:1.6"]}))
    made = {**own, "generate.steps": 1, "generate.seconds": 2}
    (loop,) = generate.run(
        load_config(GenerateStage, None, {**made, "generate.prompts": ["harp"], "generate.loop": True})
    )
    (piece,) = generate.run(load_config(GenerateStage, None, {**made, "generate.sections": ["0:harp", "1:horn"]}))
    assert len({changed.wav, longer.wav, loop.wav, piece.wav}) == 4
    assert soundfile.info(piece.wav).frames == 2 * 44100
