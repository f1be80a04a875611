"""The first commands of a new user: mistakes are named with what is meant, and nothing is left by what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from infra.cli.main import app
from infra.cli.version import describe_version, read_commit
from pipelines.stages.table import STAGES
from presto_core.config.loader import ConfigError
from presto_core.errors import UserError
from tests.support.processes import PRESTO

COMMAND = typer.main.get_command(app)
Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command in an empty folder; returns its refusal, after which the folder must be as empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TERM", "dumb")

    def run(*args: str) -> str:
        with pytest.raises((UserError, SystemExit, typer._click.exceptions.UsageError)) as refused:
            COMMAND.main(list(args), standalone_mode=False)
        assert not list(tmp_path.iterdir())
        return " ".join(f"{getattr(refused.value, 'message', refused.value)}".split())

    return run


# --- misspelled words


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (("destill-steps",), "distill-steps"),
        (("registry", "lst"), "list"),
        (("s3", "stat"), "start"),
        (("sweep", "reprot"), "report"),
        (("study", "teachr"), "teacher"),
        (("runs", "clos", "x"), "close"),
        (("ingest", "demoo"), "'demo'"),
        (("sweep", "sweeps/dmo"), "'sweeps/demo'"),
        (("ingest", "ingest.sorce=x"), "'ingest.source'"),
        (("distill-steps", "steps.weighting=dmdd"), "did you mean 'dmd'"),
        (("distill-steps", "steps.p_gen.kind=karas"), "did you mean 'karras'"),
        (("distill-layers", "layers.budget.kind=presto-l"), "did you mean 'presto_l'"),
        (("train-teacher", "cluster.reader=Ray"), "did you mean 'ray'"),
        (("evaluate", "evaluate.embedders=[{kind: clp, path: /x}]"), "did you mean 'clap'"),
        (("plan", "demo", "--device", "h10"), "h100"),
        (("explain", "steps.p_gn"), "steps.p_gen"),
        (("config", "evalute"), "evaluate"),
    ],
)
def test_a_misspelled_word_is_refused_with_what_is_meant(refuse: Refuse, args: tuple[str, ...], meant: str):
    assert meant in refuse(*args)


@pytest.mark.parametrize("args", [("ingest", "demo", "--dryrun"), ("registry", "gc", "--delet"), ("--verison",)])
def test_a_misspelled_option_is_refused_with_what_is_meant(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        COMMAND.main(list(args))
    assert refused.value.code == 2
    assert {"--dryrun": "--dry-run", "--delet": "--delete", "--verison": "--version"}[
        args[-1]
    ] in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ("registry", "show", "presto-generator@v1", "demo"),
        ("registry", "gc", "demo"),
        ("dataset", "verify", "demo"),
        ("report", "presto-report@v1", "demo"),
        ("listening-test", "build", "presto-report@v1", "demo"),
        ("runs", "demo"),
        ("sweep", "report", "0123456789abcdef", "demo"),
        ("ingest", "demo", "paper"),
        ("train-teacher", "teacher.steps=3", "demo"),
        ("demo", "demo", "science"),
        ("generate", "demo"),
        ("explain", "demo"),
    ],
)
def test_a_preset_is_refused_where_none_is_taken(refuse: Refuse, args: tuple[str, ...]):
    assert f"'{args[-1]}' is a preset" in refuse(*args)


def test_a_key_without_a_value_is_no_preset(refuse: Refuse):
    assert "steps.p_gen.kind=VALUE" in refuse("distill-steps", "steps.p_gen.kind")
    assert "unknown preset" in refuse("distill-steps", "steps.yaml")


# --- settings that a flow does not read


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("demo", "promote.max_mmd=1"), "presto registry reads promote"),
        (("demo", "sweep.samples=3"), "presto sweep run reads sweep"),
        (("demo", "teacher.steps=3"), "--from-scratch"),
        (("demo", "inputs.dataset=x"), "makes its own"),
        (("demo", "--from-scratch", "inputs.teacher=x"), "makes its own"),
        (("demo", "storage.root=/x"), "--local"),
        (("study", "seeds", "generate.steps=2"), "presto generate reads generate"),
        (("pretrain", "inputs.teacher=x"), "makes its own"),
        (("doctor", "sweep.samples=3"), "presto sweep run reads sweep"),
    ],
)
def test_a_setting_without_effect_on_a_flow_is_refused(refuse: Refuse, args: tuple[str, ...], reason: str):
    text = refuse(*args, "--dry-run")
    assert args[-1] in text
    assert reason in text


def test_settings_with_an_effect_are_taken(capsys: pytest.CaptureFixture[str]):
    COMMAND.main(["demo", "seed=3", "generate.seed=4", "--dry-run"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert printed.count("\nseed: 3\n") == 7  # each node of the flow but the teacher and ASE
    assert "\n  seed: 4\n" in printed
    COMMAND.main(["demo", "--from-scratch", "teacher.steps=3", "--dry-run"], standalone_mode=False)


# --- what is not there yet


@pytest.mark.parametrize(
    ("args", "next_command"),
    [
        (("ingest",), "presto corpus build"),
        (("ingest", "demo"), "presto corpus build"),
        (("train-teacher", "demo"), "presto ingest"),
        (("distill-layers",), "presto ingest"),
        (("distill-steps", "--from", "presto-generator@candidate-l"), "presto ingest"),
        (("distill-steps", "inputs.dataset=./"), "presto train-teacher"),
        (("distill-steps", "inputs.dataset=./", "inputs.teacher=presto-tiny-teacher", "--from", "candidate-l"),
         "presto distill-layers"),
        (("evaluate",), "presto ingest"),
        (("evaluate", "inputs.dataset=./", "inputs.teacher=./"), "presto distill-steps"),
        (("generate", "a song", "--model", "champion"), "presto-tiny-s"),
        (("report", "presto-report@candidate"), "presto demo"),
        (("report", "0123456789abcdef"), "presto evaluate"),
        (("listening-test", "build", "presto-report"), "presto demo"),
        (("registry", "show", "presto-generator@champion"), "presto demo"),
        (("registry", "verify"), "presto demo"),
        (("registry", "promote", "presto-generator", "--why", "x"), "presto demo"),
        (("registry", "push", "nowhere"), "presto registry pull"),
        (("dataset", "show"), "presto ingest"),
        (("runs",), "presto demo"),
        (("codec", "fit", "nowhere", "--output", "out"), "presto corpus build"),
    ],
)  # fmt: skip
def test_what_is_missing_is_refused_with_the_next_command(refuse: Refuse, args: tuple[str, ...], next_command: str):
    assert next_command in refuse(*args)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("ingest", "ingest.source=nowhere"), "ingest.source=nowhere"),
        (("ingest", "ingest.source=[., nowhere]"), "ingest.source=nowhere"),
        (("ingest", "ingest.source=.", "ingest.manifest=nowhere.csv"), "ingest.manifest=nowhere.csv"),
        (("ingest", "ingest.source=.", "codec.path=nowhere"), "codec.path=nowhere"),
        (("evaluate", "evaluate.folders={mine: nowhere}"), "evaluate.folders.mine=nowhere"),
        (("generate", "a song", "--model", "./nowhere"), "inputs.generator=./nowhere"),
        (("train-teacher", "inputs.dataset=0123456789abcdef"), "0123456789abcdef"),
        (("listening-test", "build", "x", "--kind", "pair"), "'pair'"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_by_its_setting(refuse: Refuse, args: tuple[str, ...], named: str):
    assert named in refuse(*args)


def test_refused_commands_and_help_import_nothing_heavy(tmp_path: Path):
    """In one process, since none of them imports what slows the next one down."""
    script = """
import sys
from infra.cli import main as cli
for line in sys.stdin:
    sys.argv = ["presto", *line.split()]
    try:
        cli.main()
    except SystemExit as stop:
        succeeds = {"--help", "--version", "config", "explain", "sweep"} & {*sys.argv}
        assert bool(stop.code) != bool(succeeds), line
    heavy = {"torch", "ray", "mlflow", "boto3", "sqlalchemy", "transformers"} & set(sys.modules)
    light = {"numpy", "pyarrow"} & set(sys.modules) if "--help" in line or sys.argv[1] in ("config", "explain") else ()
    print("HEAVY", line.strip(), sorted(heavy), sorted(light)) if heavy or light else None
"""
    commands = ["--version", "--help", "generate --help", "config distill-steps demo", "explain steps.p_gen"]
    commands += ["ingest", "train-teacher demo", "distill-steps", "evaluate", "report presto-report", "registry gc"]
    commands += ["sweep report"]
    commands += ["registry promote presto-generator --why x", "registry push nowhere", "dataset show", "codec fit x"]
    servers = ("MLFLOW_", "AWS_", "RAY_")  # which tests before may have started
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(commands), capture_output=True, text=True, check=True, cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(servers)},
    )  # fmt: skip
    assert "HEAVY" not in done.stdout, done.stdout
    assert not list(tmp_path.iterdir())


# --- version and help


def test_the_version_is_that_of_the_package_and_in_a_checkout_the_commit(tmp_path: Path):
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=tmp_path, check=True)

    assert describe_version().startswith("presto 0.")
    assert read_commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    clean = read_commit(tmp_path)
    assert len(clean) == 10
    (tmp_path / "file").write_text("two")
    assert read_commit(tmp_path) == f"{clean}, with changes"


def test_version_is_an_option_of_the_command():
    done = subprocess.run([PRESTO, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == describe_version()


@pytest.mark.parametrize("stage", [stage for stage in STAGES.values() if stage.summary], ids=lambda stage: stage.name)
def test_the_help_of_a_stage_lists_the_settings_that_one_types(stage, capsys: pytest.CaptureFixture[str]):
    assert stage.settings
    with pytest.raises(SystemExit):
        COMMAND.main([*stage.command, "--help"])
    text = capsys.readouterr().out
    for key in stage.settings:
        assert key in text
    assert "presto explain KEY" in text
    assert "Quoting" in text


def test_the_help_of_generate_has_what_a_song_needs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        COMMAND.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("steps", "seed", "seconds", "key", "tempo_bpm", "output"):
        assert f"generate.{name}" in text
    assert "--model" in text
    assert "'generate.key=C# minor'" in text


def test_refusals_of_settings_have_the_status_of_a_mistake():
    with pytest.raises(ConfigError):  # which the entry point turns into status 2
        COMMAND.main(["demo", "promote.max_mmd=1", "--dry-run"], standalone_mode=False)
