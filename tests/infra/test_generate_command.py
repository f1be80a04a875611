"""`presto generate`: which arguments are prompts, which are settings, and what --help says of both."""

from __future__ import annotations

import re

import pytest
import yaml
from typer.testing import CliRunner, Result

from infra.cli.main import app
from infra.jobs.command import StageCommand
from presto_core.config.loader import load_config
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.errors import UserError


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["generate", *args], env={"COLUMNS": "200", "TERM": "dumb"})


def resolve(*args: str) -> GenerateStage:
    result = invoke(*args, "--dry-run")
    assert result.exit_code == 0, result.output
    return GenerateStage.model_validate(yaml.safe_load(result.stdout))


@pytest.mark.parametrize(
    "prompt", ["a=b", "tempo=fast", "demo", "paper", "generate.seed=5", "😀 ピアノ", 'say "x": [1', "# 1", " ", "50%"]
)
def test_the_option_prompt_takes_any_text_as_it_is(prompt: str):
    assert resolve("--prompt", prompt, "--prompt", "harp").generate.prompts == (prompt, "harp")


@pytest.mark.parametrize("prompt", ["😀 ピアノ", 'say "x": [1', "# 1", "not (a)=b", "piano, 120 bpm = fast", "x\ty"])
def test_a_prompt_is_taken_as_it_is(prompt: str):
    config = resolve(prompt, "generate.seed=3", "--model", "1234567890123456")
    assert config.generate.prompts == (prompt,)
    assert (config.generate.seed, config.inputs.generator) == (3, "1234567890123456")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "solo piano"], "'demo' is a preset; write --preset demo"),
        (["solo piano", "ablations/discrete_inputs"], "is a preset"),
        (["x", "seed=5"], "seed=5 has no effect on generate; write generate.seed=5"),
        (["x", "steps=8"], "write generate.steps=8"),
        (["x", "a=b"], "write --prompt 'a=b'"),
        (["x", "generate.sead=5"], "did you mean 'generate.seed'"),
        (["x", "generate.seed=-1"], "generate.seed=-1"),
    ],
)
def test_an_argument_that_would_be_misunderstood_is_refused_with_the_way(args: list[str], message: str):
    error = invoke(*args, "--dry-run").exception
    assert isinstance(error, UserError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_nothing_to_generate_is_a_wrong_usage():
    result = invoke()
    assert result.exit_code == 2
    assert "Missing argument" in result.output


def test_help_lists_every_setting_with_its_text_and_the_options():
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", invoke("--help").output).split())
    for name, field in GenerateConfig.model_fields.items():
        if name != "prompts":
            assert f"generate.{name}" in text
            assert field.description, f"generate.{name} has no help text"
            assert " ".join(field.description.split())[:50] in text
    for option in ("--model", "--prompt", "--preset"):
        assert option in text


def test_a_job_runs_the_same_prompts_from_its_settings_alone():
    config = load_config(GenerateStage, None, {"generate.prompts": ["a=b"], "generate.seed": 4})
    assert StageCommand("generate", config).argv("settings.yaml") == ["generate", "--preset", "settings.yaml"]
