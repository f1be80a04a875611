"""`presto export`: its options, and an artifact's folder that generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from infra.cli.main import app
from pipelines.inference.generator import load_generator
from presto_core.config.loader import ConfigError
from presto_core.errors import UserError

COMMAND = typer.main.get_command(app)


def run(*args: str) -> None:
    COMMAND.main(["export", *args], standalone_mode=False)


def test_an_exported_folder_is_a_model_with_the_blocks_of_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    run("presto-tiny-ls", "mine", "--budget", "3", "--dry-run")
    assert not Path("mine").exists()
    run("presto-tiny-ls", "mine", "--budget", "3")
    assert "--model ./mine" in capsys.readouterr().err
    generator = load_generator("./mine")
    assert (generator.model.card.depth, generator.model.card.budget) == (3, None)
    assert generator.artifact.kind == "generator"
    with pytest.raises(UserError, match="mine exists"):
        run("presto-tiny-ls", "mine")


@pytest.mark.parametrize(
    ("args", "error", "named"),
    [
        (["presto-tiny-ls", "x", "--format", "onnx"], ConfigError, "--format onnx"),
        (["presto-tiny-ls", "x", "--dtype", "int8"], ConfigError, "--dtype int8"),
        (["presto-tiny-ls", "x", "--format", "diffusers"], UserError, "torch-export"),
        (["presto-tiny-teacher", "x", "--format", "torch-export"], UserError, "kind teacher"),
        (["presto-tiny-ls", "x", "--budget", "7"], UserError, "budget of 7"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    args: list[str], error: type[Exception], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=named):
        run(*args)
    assert not Path("x").exists()
