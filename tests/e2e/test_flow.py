"""The whole flow as a user runs it: the command line, real Ray, a real S3 server, a real MLflow server."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from presto_core.models.pretrained import DEFAULT_TEACHER, FOLDER_VAR, NAMES
from tests.support.warm_commands import run_presto

TINY = (
    "corpus.minutes=2",
    "corpus.validation_tracks=4",
    "corpus.test_tracks=6",
    "network.dim=32",
    "network.depth=3",
    "teacher.steps=12",
    "teacher.global_batch_size=4",
    "layers.steps=4",
    "layers.global_batch_size=4",
    "steps.generator_updates=2",
    "steps.global_batch_size=4",
    "loop.checkpoint_every=5",
    "evaluate.num_samples=8",
    "evaluate.validation_samples=4",
    "evaluate.interval_groups=4",
    "evaluate.nearest_k=2",
    "evaluate.base=[{steps: 6}, {sampler: euler, steps: 2, guidance_scale: 2}]",
    "evaluate.layers=[{steps: 6}]",
    "evaluate.student_steps=[1, 4]",
    "generate.steps=2",
    "evaluate.latency_batch=1",
    # workers of Ray are tested in tests/pipelines and, as jobs of a whole flow, in tests/infra; they start for a minute
    "cluster.num_workers=0",
    "cluster.data_workers=1",
)


def presto(*args: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run_presto(args, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("user")
    yield folder
    presto("s3", "stop", cwd=folder, env=dict(os.environ))


@pytest.fixture(scope="module")
def env(mlflow_server: str, home: Path) -> dict[str, str]:
    foreign = ("AWS_", "RAY_ADDRESS")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return mine | {"MLFLOW_TRACKING_URI": mlflow_server, "OMP_NUM_THREADS": "1", "HOME": str(home)}


# over 10 s: the whole demo at toy size, seven stages on one Ray session
@pytest.fixture(scope="module")
def first(home: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The demo from scratch, run once."""
    done = presto("demo", "--from-scratch", *TINY, cwd=home, env=env)
    assert done.returncode == 0, done.stderr
    return done


# over 10 s: the demo again, a sweep, and eight more commands, each a process that imports torch
@pytest.mark.entry
@pytest.mark.ray
@pytest.mark.services
def test_the_demo_makes_reports_and_sounds_and_a_second_run_reuses_them(home: Path, env: dict[str, str], first):
    (report,) = (home / ".presto/reports").glob("*/report.json")
    result = json.loads(report.read_text())
    assert [(r["name"], r["nfe"], r["blocks_run"]) for r in result["systems"]] == [
        ("teacher dpmpp_2m 6", 6, 18),
        ("teacher euler 2 w=2", 4, 12),
        ("ASE dpmpp_2m 6", 6, 11),
        ("L dpmpp_2m 6", 6, 11),
        ("S 1", 1, 3),
        ("S 4", 4, 12),
        ("LS 1", 1, 2),
        ("LS 4", 4, 9),
    ]
    assert set(result["hidden_variance"]) == {"teacher", "ASE", "L"}
    assert all(r["mmd"] > result["floor"]["mmd"] and r["latency_ms"] > 0 for r in result["systems"])
    assert result["split"] == "test"
    (verdicts,) = result["fitness"].values()  # recordings are at hand
    assert list(verdicts["mmd"]["values"])[:3] == ["real music", "codec round trip", "second codec pass"]
    assert (report.parent / "audio/original-0.wav").exists()
    assert [r["label"].split()[0] for r in result["systems"] if r["chosen"]] == ["teacher", "ASE", "L", "S", "LS"]
    assert {"mmd", "precision", "recall", "density", "coverage"} <= result["systems"][0]["intervals"].keys()
    for wanted in ("index.html", "quality_vs_blocks.png", "hidden_variance.png", "audio/LS-4-0.wav"):
        assert (report.parent / wanted).stat().st_size > 1000
    for plot in ("losses.png", "noise.png"):
        assert list((home / ".presto/reports").glob(f"*/{plot}")), plot
    wavs = list((home / ".presto/out").glob("*.wav"))
    assert wavs
    samples, rate_hz = soundfile.read(wavs[0])
    assert rate_hz == 44100
    assert 0.001 < abs(samples).max() <= 1

    made = {path: path.stat().st_mtime_ns for path in (home / ".presto/reports").rglob("*.json")}
    second = presto("demo", "--from-scratch", *TINY, cwd=home, env=env)
    assert second.returncode == 0, second.stderr
    assert "exist already" in second.stderr
    assert second.stderr.count("is finished, its result is reused") == 7
    assert {path: path.stat().st_mtime_ns for path in made} == made

    server = presto("s3", "start", cwd=home, env=env)
    exports = dict(re.findall(r"export (\w+)=(\S+)", server.stdout))
    args: tuple[str, ...] = (
        "generate",
        "string quartet, slow, in A minor, 66 bpm",
        "storage.root=s3://presto/demo",
        "generate.steps=1",
    )
    generated = presto(*args, cwd=home, env=env | exports)
    assert generated.returncode == 0, generated.stderr
    assert len(list((home / ".presto/out").glob("string-quartet-slow-in-a-minor-66-bpm-1steps-seed0-*.wav"))) == 1

    whole = presto("dataset", "verify", "storage.root=s3://presto/demo", cwd=home, env=env | exports)
    assert whole.returncode == 0, whole.stderr
    assert "all as committed" in whole.stderr
    mine = [setting for setting in TINY if setting.startswith("steps.")]
    args = ("distill-steps", "from_scratch", *mine, "storage.root=s3://presto/demo")
    args += ("--from", "presto-generator@candidate-l")
    again = presto(*args, cwd=home, env=env | exports)
    assert "is finished, its result is reused" in again.stderr, again.stderr  # the LS of the demo
    logged = first.stdout + first.stderr + second.stderr + generated.stderr
    assert exports["AWS_SECRET_ACCESS_KEY"] not in logged

    gate: tuple[str, ...] = ("from_scratch", "storage.root=s3://presto/demo")
    gate += ("promote.max_latency_ratio=1e9", "--accept-worse")  # measurements at toy size mean nothing
    for model in ("candidate-s", "candidate-ls"):
        promoted = presto("registry", "promote", model, *gate, "--why", "a try", "--json", cwd=home, env=env | exports)
        assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    (against,) = [c for c in json.loads(promoted.stdout)["checks"] if c["name"] == "against champion"]
    assert re.match(r"MMD x 1000: [-\d.]+, [-\d.]+ of presto-generator@v", against["found"]), against
    played = presto("generate", "a song", gate[1], "--model", "champion", cwd=home, env=env | exports)
    assert played.returncode == 0, played.stderr

    unknown = presto("generate", "x", "--model", "archived-9", cwd=home, env=env | exports)
    assert unknown.returncode == 1
    for name in ("presto-generator@archived-9", "presto-dataset@candidate"):
        assert name in unknown.stderr.replace("\n", " ")
    assert "Traceback" not in unknown.stderr


@pytest.mark.slow
@pytest.mark.entry
@pytest.mark.ray
@pytest.mark.services
def test_a_sweep_begins_with_the_demos_generator(home: Path, env: dict[str, str], first):
    server = presto("s3", "start", cwd=home, env=env)
    stored = env | dict(re.findall(r"export (\w+)=(\S+)", server.stdout))
    best = _run_sweep(home, stored)
    played = presto("generate", "a song", "storage.root=s3://presto/demo", "--model", best, cwd=home, env=stored)
    assert played.returncode == 0, played.stderr


@pytest.mark.slow
@pytest.mark.entry
@pytest.mark.ray
@pytest.mark.services
def test_a_study_uses_what_the_demo_made(home: Path, env: dict[str, str], first):
    study = presto("study", "seeds", "from_scratch", *TINY, "--seeds", "1", cwd=home, env=env)
    assert study.returncode == 0, study.stderr
    assert study.stderr.count("is finished, its result is reused") == 7
    assert "MMD of S at 4 steps ÷ the teacher at 4 evaluations" in study.stderr
    assert "| **S 4** | 4 | 12 |" in (home / ".presto/science/science.md").read_text()


# over 10 s: two evaluations and the demo without a teacher of its own, at toy size; four minutes, so not in CI
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_models_are_exported_and_the_demo_distills_the_teacher_among_them(home: Path, env: dict[str, str], first):
    server = presto("s3", "start", cwd=home, env=env)
    stored = env | dict(re.findall(r"export (\w+)=(\S+)", server.stdout))
    models = home / "models"
    root = "storage.root=s3://presto/demo"
    args = ("pretrain", "from_scratch", *TINY, root, "--output", str(models))
    refused = presto(*args, cwd=home, env=stored)
    assert refused.returncode == 1, refused.stderr
    assert "does not pass its gate" in " ".join(refused.stderr.split())
    assert not list(models.iterdir())

    made = presto(*args, "--anyway", cwd=home, env=stored)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("is finished, its result is reused") == 6  # the demo's models, and the gate's evaluation
    manifests = {path.parent.name: json.loads(path.read_text()) for path in models.glob("*/manifest.json")}
    assert set(manifests) == set(NAMES)
    for name, manifest in manifests.items():
        results = json.loads((models / name / "test_report.json").read_text())
        assert results["split"] == "test"
        assert results["systems"], name
        assert manifest["provenance"]["training_hours"] > 0
        assert manifest["provenance"]["made_with"]["device"]
        assert "TimGM6mb" in manifest["export"]["licence"]
    assert manifests[DEFAULT_TEACHER]["gate"]["verdict"].startswith("failed")

    distilled = [setting for setting in TINY if not setting.startswith(("teacher.", "network."))]
    distilled.append("layers.budget={kind: presto_l}")  # the table of the preset is for six blocks
    demo = presto("demo", *distilled, cwd=home, env=stored | {FOLDER_VAR: str(models)})
    assert demo.returncode == 0, demo.stderr
    assert demo.stderr.count("is finished, its result is reused") == 1  # the data set
    teacher = manifests[DEFAULT_TEACHER]["id"]
    reports = [json.loads(path.read_text()) for path in (home / ".presto/reports").glob("*/report.json")]
    (report,) = [report for report in reports if report["parents"]["teacher"] == teacher]
    assert {row["label"].split()[0] for row in report["systems"]} == {"teacher", "L", "S", "LS"}


@pytest.mark.entry
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("ingest", "dmeo"), 2, "'dmeo'"),
        (("ingest", "ingest.sorce=x"), 2, "'ingest.source'"),
        (("ingest", "ingest.source=nowhere"), 1, "nowhere"),
        (("ingest", "ingest.source=empty"), 1, "empty"),
        (("generate",), 2, "Missing argument"),
        (("distill-steps", "--from", ""), 1, "--from"),
        (("generate", "a song"), 1, "presto-generator@candidate"),
        (("train-teacher", "storage.root=s3://nowhere/x"), 1, "AWS_ACCESS_KEY_ID"),
        (("doctor", "cluster.adress=x"), 2, "'cluster.address'"),
        (("s3", "start", "--port", "TAKEN"), 1, "--port"),
    ],
)
def test_a_users_mistake_is_one_message(args, code: int, message: str, tmp_path: Path, mlflow_database: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / ".presto").mkdir()
    shutil.copy(mlflow_database, tmp_path / ".presto/mlflow.db")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_ADDRESS", "MLFLOW_"))}
    mine |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    mine |= {FOLDER_VAR: str(tmp_path / "empty")}  # otherwise a song is made with a model of the package
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = [str(taken.getsockname()[1]) if w == "TAKEN" else w for w in args]
        done = presto(*args, cwd=tmp_path, env=mine)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def _run_sweep(home: Path, env: dict[str, str]) -> str:
    """Sweep with the embedding of `evaluate`; the preset's own trial is the demo's generator, which is not retrained.

    Returns:
        The generator's id.
    """
    mine = [setting for setting in TINY if setting.startswith("steps.")]
    settings = ["validation.every=1", "validation.samples=4", "validation.reference_samples=8", "sweep.repeats=0"]
    settings += ["cluster.num_workers=0", "storage.root=s3://presto/demo"]
    listed = ("--search", "grid", "--scheduler", "none")
    domains = 'sweep.domains={"steps.gan.generator_weight": [0.0]}'
    swept = presto("sweep", "from_scratch", *mine, *settings, domains, *listed, cwd=home, env=env)
    assert swept.returncode == 0, swept.stderr
    (report,) = (home / ".presto/reports").glob("sweep-*/sweep.json")
    trials = {str(row["settings"]): row for row in json.loads(report.read_text())["trials"]}
    assert set(trials) == {"{}", "{'steps.gan.generator_weight': 0.0}"}
    assert all(row["state"] == "finished" and row["value"] > 0 for row in trials.values())
    assert trials["{}"]["run_id"] in {path.name for path in (home / ".presto/reports").iterdir()}
    assert env["AWS_SECRET_ACCESS_KEY"] not in swept.stdout + swept.stderr + report.read_text()
    return str(trials["{}"]["run_id"])
