"""Checks before anything is sent: targets, local paths and servers, secrets, sizes; and the rendered RayJob."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.cli.in_job import decode_settings
from infra.cli.sweep import plan_to_config
from infra.jobs.command import StageCommand, make_entrypoint, make_environment
from infra.jobs.kuberay import render_rayjob
from infra.jobs.package import LAUNCHER, PACKAGES, SETTINGS, SOURCE, CodePackage, build_package
from infra.jobs.portability import check_no_secrets, check_reachable, freeze_config
from infra.jobs.targets import Kind, Target, is_loopback_url, parse_target
from pipelines.presets.resolve import PRESETS
from pipelines.sweep.plan import make_plan
from presto_core.config.loader import ConfigError, load_config, to_yaml
from presto_core.config.schema import stage_configs
from presto_core.config.stage import StageConfig
from presto_core.config.submit import SubmitConfig
from presto_core.errors import UserError
from tests.infra.test_manifests import CRDS, kuberay
from tests.servers.ray_cluster import make_user_environment
from tests.support.warm_commands import run_presto

REMOTE_HEAD, LOCAL_HEAD = Target(Kind.HEAD, "http://10.0.0.7:8265"), Target(Kind.HEAD, "http://127.0.0.1:8265")
IMAGE = "registry.example/presto@sha256:" + "a" * 64
REMOTE_SETTINGS = {"storage.root": "s3://bucket/x", "tracking.uri": "https://mlflow.example"}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the servers that other tests share."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


def config_of(stage: str, preset: str = "demo", **settings: Any) -> StageConfig:
    return load_config(stage_configs()[stage], preset, REMOTE_SETTINGS | settings, preset_folder=PRESETS)


def make_command(stage: str, config: StageConfig, *options: str) -> StageCommand:
    return StageCommand(stage, config, more_options=options)


@pytest.mark.parametrize(
    ("on", "kind", "address"),
    [
        ("local", Kind.LOCAL, ""),
        ("http://head:8265/", Kind.HEAD, "http://head:8265"),
        ("https://ray.example", Kind.HEAD, "https://ray.example"),
        ("ray://head:10001", Kind.HEAD, "ray://head:10001"),
        ("kuberay", Kind.KUBERAY, ""),
        ("kuberay://prod", Kind.KUBERAY, "prod"),
    ],
)
def test_targets(on: str, kind: Kind, address: str):
    assert parse_target(on) == Target(kind, address)


@pytest.mark.parametrize("on", ["", "head:8265", "http://", "http://head:x", "ftp://head", "kuberay://", "locl"])
def test_what_is_no_target_is_refused(on: str):
    with pytest.raises(UserError, match=re.escape(f"--on {on!r}")):
        parse_target(on)


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(UserError, match=r"--on .*RAY_AUTH_TOKEN") as refused:
        parse_target("https://me:hunter22@head:8265")
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://127.9.9.9", True),
        ("http://10.0.0.1:8265", False),
        ("http://head", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_loopback(url: str, is_local: bool):
    assert is_loopback_url(url) is is_local


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("train-teacher", {"storage.root": "/data/x"}, "storage.root=/data/x"),
        ("train-teacher", {"storage.root": ".presto/store"}, "storage.root=.presto/store"),
        ("ingest", {"ingest.source": ["s3://b/a", "music"]}, "ingest.source=music"),
        ("ingest", {"ingest.source": "s3://b/a", "codec.path": "/w"}, "codec.path=/w"),
        ("corpus", {"tracking.uri": ""}, "corpus.folder=.presto/corpus"),
        ("generate", {}, "generate.output=.presto/out"),
        ("evaluate", {"inputs.teacher": "/store/abc"}, "inputs.teacher=/store/abc"),
        ("train-teacher", {"tracking.uri": "sqlite:///x.db"}, "tracking.uri=sqlite:///x.db"),
        ("train-teacher", {"tracking.uri": ""}, "tracking.uri"),
        ("train-teacher", {"tracking.uri": "http://127.0.0.1:5000"}, "tracking.uri=http://127.0.0.1:5000"),
        ("train-teacher", {"cluster.address": "10.0.0.1:6379"}, "cluster.address=10.0.0.1:6379"),
    ],
)
def test_what_exists_only_on_this_machine_is_refused_with_its_name(
    stage: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError) as refused:
        check_reachable(stage, freeze_config(stage, config_of(stage, **settings)), REMOTE_HEAD)
    assert message in str(refused.value)


def test_an_object_store_of_this_machine_is_refused_unless_the_cluster_is_on_it_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    config = config_of("train-teacher")
    check_reachable("train-teacher", config, LOCAL_HEAD)
    with pytest.raises(UserError, match=re.escape("http://127.0.0.1:9000")):
        check_reachable("train-teacher", config, REMOTE_HEAD)


def test_shared_folders_and_what_is_sent_along_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "codec").mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    settings: dict[str, Any] = {"ingest.source": "/mnt/music/a", "submit.shared_folders": ["/mnt/music"]}
    sent = {"codec.path": "codec", "submit.working_dir": str(tmp_path)}
    check_reachable("ingest", config_of("ingest", **settings, **sent), REMOTE_HEAD)
    with pytest.raises(UserError, match=re.escape("ingest.source=/mnt/music/../x")):
        check_reachable("ingest", config_of("ingest", **settings | {"ingest.source": "/mnt/music/../x"}), REMOTE_HEAD)


def test_the_mlflow_server_of_this_environment_is_frozen_into_the_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    sent = freeze_config("train-teacher", config_of("train-teacher", **{"tracking.uri": ""}))
    assert sent.tracking.uri == "https://tracking.example"
    assert sent.run_id() == config_of("train-teacher").run_id()


def test_secrets_in_settings_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    texts = {"mlflow": "uri: https://me:hunter22@mlflow", "AWS_SECRET_ACCESS_KEY": "prompts: [wJalrXUtnFEMIK7MDENG]"}
    for source, text in texts.items():
        with pytest.raises(UserError, match=source) as refused:
            check_no_secrets(text)
        assert "hunter22" not in str(refused.value)
        assert "wJalr" not in str(refused.value)
    check_no_secrets(to_yaml(config_of("train-teacher")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": IMAGE, "working_dir": "."}, "working_dir=."),
        ({"image": "presto:latest"}, "image=presto:latest"),
        ({"env": {"MY_API_KEY": "x"}}, "env.MY_API_KEY"),
        ({"max_mb": 0}, "submit.max_mb"),
    ],
)
def test_settings_that_clash_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as refused:
        config_of("train-teacher", **{f"submit.{key}": value for key, value in settings.items()})
    assert message in str(refused.value)


def test_how_a_command_is_sent_does_not_change_its_run():
    settings: dict[str, Any] = {"submit.max_mb": 7}
    assert config_of("train-teacher", **settings).run_id() == config_of("train-teacher").run_id()


# --- the code package


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder that also holds files that must not be sent."""
    for name in (
        "preset.yaml",
        "notes/a.txt",
        ".env",
        ".aws/credentials",
        "key.pem",
        "runs/x.bin",
        ".git/HEAD",
        "drop/b",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / ".gitignore").write_text("runs/\n")
    return tmp_path


def test_code_settings_and_the_folder_are_sent_without_credentials(
    mine: Path, tmp_path_factory: pytest.TempPathFactory
):
    parcel = build_package(SubmitConfig(working_dir=str(mine), excludes=("drop/",)), "seed: 1\n")
    own = {
        name for name in parcel.files if not name.startswith(("presto_core/", "pipelines/", "infra/", "tune_spaces/"))
    }
    assert own == {"preset.yaml", "notes/a.txt", ".gitignore"}
    folder = tmp_path_factory.mktemp("sent")
    parcel.write(folder)
    assert (folder / SETTINGS).read_text() == "seed: 1\n"
    assert not list(folder.rglob("*.pyc"))
    done = subprocess.run(
        ["sh", LAUNCHER, "train-teacher", SETTINGS, "--dry-run"],
        cwd=folder,
        env=make_user_environment(mine, PRESTO_PYTHON=sys.executable) | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "seed: 1" in done.stdout


def test_all_of_the_code_is_sent():
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=SOURCE, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a checkout")
    sent = build_package(SubmitConfig(), "").files
    assert {name for name in tracked if "/pretrained/" not in name} <= set(sent)


def test_the_code_that_is_sent_knows_its_version(tmp_path: Path):
    """So what a job makes records it, and a model that it registers requires it."""
    build_package(SubmitConfig(), "").write(tmp_path)
    (sent,) = metadata.distributions(path=[str(tmp_path)])
    assert (sent.name, sent.version) == ("presto-distill", metadata.version("presto-distill"))
    assert sent.metadata["Requires-Python"]


PRIVATE = (
    ".env", "app/.ENV.production", ".git-credentials", ".docker/config.json", ".config/gcloud/tokens.db", ".pgpass",
    ".netrc", ".npmrc", ".pypirc", "a/kubeconfig.yaml", ".kube/config", "ca.pem", "ca.PFX", "store.p12", "tls.key",
    "id_rsa", "deploy/id_ed25519_work", "id_ecdsa.pub", "deploy_rsa", "notes.ppk", ".aws/credentials", ".vault-token",
    "terraform.tfstate.backup", "client_secret_1.json", "my-service-account.json", ".bash_history", "secrets.toml",
    "hf/token", ".huggingface/token", ".s3cfg", "rclone.conf", "aws_credentials.csv",
)  # fmt: skip
HARMLESS = (
    "preset.yaml", "music/Secrets.flac", "music/Secret Love.MP3", "tokens.py", "max_tokens.yaml", "monkey.wav",
    "keys.csv", "environment.yml", "pemberton.txt", "token_counts.json", "docker-compose.yaml",
)  # fmt: skip
CONTENTS = {
    "notes.txt": "see below\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
    "robot.json": '{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----"}',
    "cluster.yaml": "kind: Config\nusers:\n- user:\n    client-key-data: LS0t\n",
    "aws.ini": "[default]\naws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYab\n",
    "registry": '{"auths": {"ghcr.io": {"auth": "eDp5"}}}',
    "npm": "//registry.npmjs.org/:_authToken=npm_abc\n",
    "login": "machine api.example.com login me password hunter2\n",
}


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name in (*PRIVATE, *HARMLESS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("os.environ['AWS_SECRET_ACCESS_KEY']  # of the node")
    for name, text in CONTENTS.items():
        (folder / name).write_text(text)
    return folder


def get_own_files(package: CodePackage) -> set[str]:
    return {name for name in package.files if name.split("/")[0] not in PACKAGES}


def test_files_with_credentials_are_not_sent_and_are_named(untidy: Path):
    package = build_package(SubmitConfig(working_dir=str(untidy)), "")
    assert get_own_files(package) == set(HARMLESS)
    assert set(package.left_out) == {*PRIVATE, *CONTENTS}
    notice = package.describe_left_out()
    assert notice.startswith(f"{len(PRIVATE) + len(CONTENTS)} files")
    assert ".docker/config.json" in notice
    assert "by their content" in notice


def test_what_holds_credentials_cannot_be_included(untidy: Path):
    (untidy / ".gitignore").write_text("!.env\n!id_rsa\n")
    package = build_package(SubmitConfig(working_dir=str(untidy), excludes=("!.env", "!.pgpass")), "")
    assert {".env", "id_rsa", ".pgpass"} <= set(package.left_out)


def test_links_are_checked_by_their_targets(untidy: Path, tmp_path: Path):
    (tmp_path / "outside.txt").write_text("private")
    for name, target in {
        "same.yaml": "preset.yaml", "up.txt": "../outside.txt", "etc": "/etc", "hosts.txt": "/etc/hosts",
        "innocent.txt": ".env", "loop": "loop", "folder": "music", "dangling": "nowhere", "chain": "up.txt",
    }.items():  # fmt: skip
        (untidy / name).symlink_to(target)
    package = build_package(SubmitConfig(working_dir=str(untidy)), "")
    assert get_own_files(package) == {*HARMLESS, "same.yaml"}
    links = {"up.txt", "etc", "hosts.txt", "innocent.txt", "loop", "folder", "dangling", "chain"}
    assert links <= set(package.left_out)


def test_a_folder_behind_a_link_is_sent_like_any_other(untidy: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(untidy)
    assert get_own_files(build_package(SubmitConfig(working_dir=str(tmp_path / "alias")), "")) == set(HARMLESS)


def test_only_the_models_of_the_package_that_a_job_reads_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("presto-tiny-teacher", "presto-tiny-ls"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text('{"id": "x"}')
    monkeypatch.setenv("PRESTO_PRETRAINED", str(tmp_path))
    sent = build_package(SubmitConfig(), "", pretrained=["presto-tiny-teacher"]).files
    assert {name for name in sent if "/pretrained/" in name} == {
        "presto_core/pretrained/presto-tiny-teacher/manifest.json"
    }
    assert not [name for name in build_package(SubmitConfig(), "").files if "/pretrained/" in name]


def test_a_model_of_the_package_is_on_every_node_and_needs_no_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRESTO_PRETRAINED", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "presto-tiny-ls").mkdir()
    (tmp_path / "presto-tiny-ls/manifest.json").write_text('{"id": "x"}')
    shared: dict[str, Any] = {"generate.output": "/mnt/out", "submit.shared_folders": ["/mnt"], "tracking.uri": ""}
    local = shared | {"storage.root": ".presto/store"}
    alone = config_of("generate", **local | {"inputs.generator": "presto-tiny-ls"})
    check_reachable("generate", freeze_config("generate", alone), REMOTE_HEAD)
    with pytest.raises(UserError, match=r"tracking\.uri"):
        freeze_config("generate", config_of("generate", **local | {"inputs.generator": "presto-generator@champion"}))
    with pytest.raises(UserError, match=r"tracking\.uri"):  # the registry may have a generator
        freeze_config("generate", config_of("generate", **local))


def test_a_folder_of_two_gigabytes_is_refused_with_what_takes_most(mine: Path):
    for name, size in (("dump.bin", 2_000_000_000), ("notes/b.wav", 7_000_000)):
        with (mine / name).open("wb") as file:
            file.truncate(size)  # sparse: takes no space on the disk
    with pytest.raises(UserError) as refused:
        build_package(SubmitConfig(working_dir=str(mine)), "")
    for fragment in ("2007 MB", "submit.max_mb=100", "dump.bin 2000 MB, notes 7 MB"):
        assert fragment in str(refused.value)
    build_package(SubmitConfig(working_dir=str(mine), excludes=("*.bin",)), "")


def test_a_folder_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=re.escape("submit.working_dir=nowhere")):
        build_package(SubmitConfig(working_dir="nowhere"), "")


# --- what is sent


@pytest.mark.parametrize("stage", ["corpus", "ingest", "train-teacher", "distill-steps", "evaluate", "generate"])
@pytest.mark.parametrize("image", ["", IMAGE])
def test_the_command_of_a_job_needs_no_path_of_this_machine(stage: str, image: str):
    config = config_of(stage, **{"submit.image": image})
    shell_command = make_entrypoint(make_command(stage, config), config)
    assert sys.executable not in shell_command
    assert str(Path.cwd()) not in shell_command
    assert not set(shell_command) & set("$`;&|<>"), "a shell on the way would change it"


def test_a_job_gets_its_settings_in_one_way_only():
    sent, inside = config_of("evaluate"), config_of("evaluate", **{"submit.image": IMAGE})
    assert "PRESTO_SETTINGS" not in make_environment(sent, "id")
    sent_settings = make_environment(inside, "id")["PRESTO_SETTINGS"]
    assert yaml.safe_load(decode_settings(sent_settings))["storage"]["root"] == "s3://bucket/x"


def test_nothing_on_a_node_expands_the_settings_of_an_image_job():
    root = "s3://bucket/$HOME/$(AWS_SECRET_ACCESS_KEY)/${X}/`id`"
    config = config_of("train-teacher", **{"storage.root": root, "submit.image": IMAGE})
    settings = make_environment(config, "id")["PRESTO_SETTINGS"]
    assert not set("$`(){}\n") & set(settings)
    assert yaml.safe_load(decode_settings(settings))["storage"]["root"] == root
    assert decode_settings("storage: {root: s3://b/x}\n") == "storage: {root: s3://b/x}\n"  # of an earlier version


def test_a_sweep_is_sent_as_one_file_that_means_the_same(tmp_path: Path):
    plan = make_plan(["demo", "validation.every=5", 'sweep.spaces=["noise", "layers"]', "sweep.samples=6", "seed=3"])
    (tmp_path / "job.yaml").write_text(to_yaml(plan_to_config(plan)))
    again = make_plan([str(tmp_path / "job.yaml")])
    assert (again.base, again.space, again.depth) == (plan.base, plan.space, plan.depth)
    assert list(again.iter_proposals()) == list(plan.iter_proposals())


@pytest.mark.parametrize(("preset", "pods", "gpus"), [("demo", 2, None), ("paper", 8, "1")])
def test_a_rayjob_is_as_large_as_its_preset_asks(preset: str, pods: int, gpus: str | None):
    config = config_of("train-teacher", preset, **{"submit.image": IMAGE, "submit.namespace": "music"})
    job = render_rayjob(make_command("train-teacher", config), config, "presto-1")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == pods
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert container["image"] == IMAGE
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert job["metadata"]["namespace"] == "music"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_rayjobs_fit_the_schema_of_kuberay():
    if not CRDS.is_dir():
        pytest.skip("KubeRay's CRDs are not here")
    for stage in ("corpus", "ingest", "train-teacher", "evaluate"):
        config = config_of(stage, "paper", **{"submit.image": IMAGE})
        kuberay("RayJob").validate(render_rayjob(make_command(stage, config), config, "presto-1"))
    job = render_rayjob(make_command("evaluate", config), config, "presto-1")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(jsonschema.ValidationError, match="contaners"):
        kuberay("RayJob").validate(job)


# --- the command line


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--on", "nowhere"), 2, "'nowhere'"),
        (("--on", "http://10.0.0.7:8265"), 1, "tracking.uri"),
        (("--on", "kuberay", "tracking.uri=https://m.example"), 1, "submit.image"),
        (("--on", "kuberay", "submit.imge=x"), 2, "'submit.image'"),
    ],
)
def test_a_mistake_is_one_message(args: tuple[str, ...], code: int, message: str, tmp_path: Path):
    done = presto("train-teacher", "demo", *args, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_shows_what_would_be_sent_and_touches_nothing(tmp_path: Path):
    args = ("train-teacher", "demo", "storage.root=s3://b/x", "tracking.uri=https://m.example", "--dry-run")
    done = presto(*args, "--on", "http://10.0.0.7:8265", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# to http://10.0.0.7:8265, with ")
    assert "exec sh presto-job.sh train-teacher presto-job.yaml" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_missing_kubectl_is_named(tmp_path: Path):
    args = (
        "train-teacher",
        "demo",
        "storage.root=s3://b/x",
        "tracking.uri=https://m.example",
        f"submit.image={IMAGE}",
    )
    applied = presto(*args, "--on", "kuberay://prod", home=tmp_path, PATH="/nowhere")
    assert applied.returncode == 1
    assert "kubectl" in applied.stderr
    printed = presto(*args, "--on", "kuberay", home=tmp_path)
    assert yaml.safe_load(printed.stdout)["kind"] == "RayJob"
    assert json.dumps(IMAGE) in json.dumps(yaml.safe_load(printed.stdout))


def presto(*args: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    mine = make_user_environment(home) | environment
    assert not {name for name in mine if name.startswith(("AWS_", "MLFLOW_"))}
    return run_presto(args, cwd=home, env=mine, timeout_s=300)


def test_a_job_in_an_image_reads_its_settings_from_its_environment(tmp_path: Path):
    config = config_of("train-teacher", seed=3)
    env = make_user_environment(tmp_path, PRESTO_SETTINGS=to_yaml(config), PRESTO_JOB="presto-1")
    command = [sys.executable, "-m", "infra.cli.in_job", "train-teacher", "PRESTO_SETTINGS", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in done.stdout
    lacking = subprocess.run(command, cwd=tmp_path, env=make_user_environment(tmp_path), capture_output=True, text=True)
    assert lacking.returncode == 1
    assert "PRESTO_SETTINGS" in lacking.stderr
    assert os.environ.get("PRESTO_JOB") is None
