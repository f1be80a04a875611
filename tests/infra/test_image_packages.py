"""Packages of the image: each is pinned by version as everywhere else, and by the hashes of its files."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra/docker"
LOCK = (DOCKER / "requirements.lock").read_text()
PACKAGES = re.findall(r"^([\w.-]+)==(\S+) \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.MULTILINE)


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_of_the_lock_belongs_to_a_package_with_hashes():
    lines = 1 + sum(1 + hashes.count("\n") for _, _, hashes in PACKAGES)
    assert lines == LOCK.count("\n")


def test_versions_are_those_of_the_constraints():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    tested = {normalize(name): version for name, version in pins.items()}
    other = {name: version for name, version, _ in PACKAGES if tested.get(normalize(name)) != version}
    assert set(other) <= {"setuptools"}  # which pip does not list: it comes with a virtual environment


def test_what_presto_and_its_extras_require_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = LOCK.partition("\n")[0].removeprefix("# extras: ").split()
    required = [
        *project["dependencies"],
        *(name for extra in extras for name in project["optional-dependencies"][extra]),
    ]
    names = {normalize(re.split(r"[\[<>=~!; ]", requirement)[0]) for requirement in required}
    assert names <= {normalize(name) for name, _, _ in PACKAGES}
    assert set(extras) == {"m4a", "oobleck", "plots", "s3-server", "serve", "server", "sweep"}


def make_wheel(folder: Path, name: str, version: str = "1.0") -> str:
    """Write a wheel with one module and return its SHA-256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"FROM = {str(folder)!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install(lock: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the image's script on a lock file; packages are looked for in tmp_path/wheels and put into tmp_path/site."""
    (tmp_path / "requirements.lock").write_text(lock)
    environment = {
        "PATH": os.environ["PATH"],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_INDEX_URL": (tmp_path / "empty").as_uri(),
        "PIP_TARGET": str(tmp_path / "site"),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = ["sh", str(DOCKER / "install_packages.sh"), str(tmp_path / "requirements.lock"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for name in ("wheels", "empty", "cpu/torch"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "wheels"


def test_a_package_of_other_bytes_is_not_installed(tmp_path: Path, wheels: Path):
    digest = make_wheel(wheels, "presto_trial")
    wrong = install(f"presto_trial==1.0 \\\n    --hash=sha256:{'0' * 64}\n", tmp_path)
    assert wrong.returncode != 0
    assert not (tmp_path / "site").exists()
    right = install(f"presto_trial==1.0 \\\n    --hash=sha256:{digest}\n", tmp_path)
    assert (right.returncode, (tmp_path / "site/presto_trial.py").exists()) == (0, True), right.stderr


def test_the_cpu_variant_takes_torch_from_its_index_and_nothing_of_cuda(tmp_path: Path, wheels: Path):
    index = tmp_path / "cpu"
    make_wheel(index / "torch", "torch")
    (index / "torch/index.html").write_text('<a href="torch-1.0-py3-none-any.whl">torch</a>')
    lock = f"presto_trial==1.0 \\\n    --hash=sha256:{make_wheel(wheels, 'presto_trial')}\n"
    lock += f"torch==1.0 \\\n    --hash=sha256:{'0' * 64}\nnvidia-nvtx==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    done = install(lock, tmp_path, index.as_uri())
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "site").glob("*.py")} == {"torch", "presto_trial"}
    assert str(index / "torch") in (tmp_path / "site/torch.py").read_text()
