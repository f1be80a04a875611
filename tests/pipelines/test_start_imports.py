"""What commands import: a command that needs no PyTorch, MLflow or Ray does not wait for one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.tracking.database import create_database
from presto_core.models.pretrained import DEFAULT_GENERATOR

HEAVY = ("torch", "transformers", "mlflow", "matplotlib", "scipy", "pandas", "ray", "sqlalchemy", "sympy", "sklearn")
# what a clip needs of these; torch.distributed.tensor takes as long as PyTorch itself
FOR_A_CLIP = ("torch",)
SLOW_PARTS = ("torch.distributed.tensor", "torch._dynamo", "torch._inductor")
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from infra.cli.main import app

heavy, found = json.loads(sys.argv[1]), {}
for line in sys.stdin:
    command = json.loads(line)
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found[command[0] + " " + command[1]] = [module for module in heavy if module in sys.modules]
print(json.dumps(found))
"""


def test_commands_import_nothing_heavy_that_they_do_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One process, from light to heavy: a module that one command imports shows in all that follow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    create_database(tmp_path / ".presto" / "mlflow.db")
    light: list[list[str]] = [
        ["generate", "--help"],
        ["explain", "steps.p_dmd.kind"],
        ["config", "distill-steps", "demo"],
        ["registry", "list"],
        ["registry", "search", "kind = generator"],
        ["distill-steps", "demo", "--dry-run"],
        ["generate", "piano", "--model", "champion", "--dry-run"],
        ["presets", "--dry-run"],
    ]
    settings = [f"generate.output={tmp_path}", "generate.seconds=1", "generate.steps=1"]
    clip = ["generate", "drums", "--model", DEFAULT_GENERATOR, *settings]
    commands = [*light, clip]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([*HEAVY, *SLOW_PARTS])],
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    needed = {f"{command[0]} {command[1]}": list(FOR_A_CLIP if command is clip else ()) for command in commands}
    assert found == needed
    assert list(tmp_path.glob("*.png"))  # the spectrogram is drawn without matplotlib
