"""The sdist and the wheel hold all that a user needs who has no checkout: code, shipped models, presets, licences."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = (
    "import sys; from setuptools import build_meta as backend; "
    "print(getattr(backend, f'build_{sys.argv[1]}')(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that no file that was left in the checkout gets in."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, as an installer does that finds no wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment into which an installer put the wheel; it borrows the dependencies, which take 7 GB."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin/python")
    install = ["uv", "pip", "install", "-q", "--python", python, "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    (find_packages(folder) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def find_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def build(kind: str, source: Path, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def run_installed(installed: Path, command: Sequence[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    start = [str(installed / "bin" / command[0]), *command[1:]]
    done = subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_licence_and_the_notice_are_in_the_wheel_and_it_holds_no_tests(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    licences = {name.partition(".dist-info/licenses/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE", "presto_core/metrics/weights/LICENSE.musicnn.md"}
    assert "License-Expression: Apache-2.0" in metadata
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "presto_core", "pipelines", "tune_spaces", "infra",
    }  # fmt: skip


def test_every_file_of_the_packages_that_is_no_code_is_in_the_wheel(installed: Path):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "presto_core", "pipelines", "tune_spaces", "infra"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert {name for name in tracked if not (find_packages(installed) / name).is_file()} == set()


def test_without_the_checkout_a_shipped_model_makes_music(installed: Path, tmp_path: Path):
    run_installed(installed, ["presto", "generate", "solo piano, slow, A minor", "generate.steps=1"], tmp_path)
    assert len(list(tmp_path.glob(".presto/out/*.wav"))) == 1


@pytest.mark.parametrize(
    "command", [["explain", "steps.p_dmd"], ["demo", "--dry-run"], ["config", "distill-steps", "laptop"]], ids=" ".join
)
def test_without_the_checkout_settings_and_presets_are_there(installed: Path, tmp_path: Path, command: list[str]):
    assert len(run_installed(installed, ["presto", *command], tmp_path).splitlines()) > 5


def test_these_tests_run_the_installed_code(installed: Path, tmp_path: Path):
    program = "import infra, pipelines, presto_core; print(infra.__file__, pipelines.__file__, presto_core.__file__)"
    paths = run_installed(installed, ["python", "-c", program], tmp_path).split()
    assert len(paths) == 3
    assert all(path.startswith(str(installed)) for path in paths)
