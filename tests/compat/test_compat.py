"""Artifacts, registered versions and unfinished runs made by the code of commit eeee681 work with the present code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from presto_core.config.stage import ADDED_SETTINGS
from presto_core.metrics.table import rename_former
from tests.support.processor import read_cpu_vendor

CLI = "infra.cli.main"  # module of the command line
COMPAT_FOLDER = Path(__file__).resolve().parent
EXPECTED: dict[str, Any] = json.loads((COMPAT_FOLDER / "expected.json").read_text())
RUNS: dict[str, dict[str, Any]] = EXPECTED["runs"]
# Other releases of PyTorch, or processors of another maker, may round differently with any code.
SAME_ARITHMETIC = [metadata.version("torch"), platform.machine(), read_cpu_vendor()] == [
    EXPECTED["made_with"][name] for name in ("torch", "machine", "cpu_vendor")
]
EXACT = ("train-teacher", "distill-layers")  # distill-steps may compute the generator's gradient with less rounding
TOLERANCE = 1e-4  # relative to how far the weights moved after the checkpoint; measured: 1e-6 (README.md)
# Class names that enter run ids.
STAGE_CLASSES = {"train-teacher": "TeacherStage", "distill-layers": "LayersStage", "distill-steps": "StepsStage"}
STORAGE = "storage.root=store"
LIST, VERIFY = ["registry", "list", "--json", STORAGE], ["registry", "verify", "--json", STORAGE]
(REPORT_ID,) = (version["id"] for version in EXPECTED["versions"] if version["kind"] == "report")
# Promotion compares MMD now, which has limits of its own.
FREE = [f"promote.{name}=null" for name in ("max_mmd_ratio", "max_teacher_ratio", "max_floor_share")]
PROMOTE = [*FREE, *(word for word in EXPECTED["promote"] if "max_fd_ratio" not in word)]
COMMANDS = {
    "report": ["report", REPORT_ID, STORAGE],
    "show": ["registry", "show", "champion", "--json", STORAGE],
    "lineage": ["registry", "lineage", "presto-generator@v2", "--json", STORAGE],
    "search": ["registry", "search", "method = L", "--json", STORAGE],
    "gc": ["registry", "gc", "--older-than-hours", "0", "--json", STORAGE],
    "dataset": ["dataset", "verify", STORAGE],
    "verify": VERIFY,
    "list": LIST,  # after the others, none of which may change what is registered
    **{stage: [*run["words"], "--dry-run"] for stage, run in RUNS.items()},
}
# Runs several commands in one process, because a start takes seconds; prints [exit status, standard output] of each.
RUN_COMMANDS = """
import contextlib, importlib, io, json, sys
main, results = importlib.import_module(sys.argv[1]).main, []
for words in json.load(sys.stdin):
    sys.argv, output, status = ["presto", *words], io.StringIO(), 0
    with contextlib.redirect_stdout(output):
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
    results.append([status, output.getvalue()])
print(json.dumps(results))
"""
# Prints [samples, sample rate, root mean square] of one clip of each model, loaded through MLflow's pyfunc flavour.
PREDICT = """
import base64, io, json, os, sys
import mlflow, numpy, pandas, soundfile
mlflow.set_tracking_uri("sqlite:///" + os.path.abspath(".presto/mlflow.db"))
clips = {}
for uri in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(uri)
    output = model.predict(pandas.DataFrame({"prompt": ["solo piano"]}), params={"steps": 2, "seed": 3})
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(output["wav_base64"][0])))
    clips[uri] = [len(samples), rate, float(numpy.sqrt(numpy.square(samples).mean()))]
print(json.dumps(clips))
"""
Outputs = dict[str, str]
Weights = dict[str, torch.Tensor]


class Store:
    """The old store in a temporary folder, and the present code to use it with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_python(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        foreign = ("AWS_", "RAY_", "MLFLOW_", "PRESTO_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | EXPECTED["environment"]
        env |= {"PYTHONPATH": str(COMPAT_FOLDER.parents[1]), "PRESTO_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done

    def run_commands(self, commands: dict[str, list[str]]) -> Outputs:
        """Run commands, all of which must succeed; return their standard outputs."""
        done = self.run_python("-c", RUN_COMMANDS, CLI, stdin=json.dumps(list(commands.values())))
        results = json.loads(done.stdout.splitlines()[-1])
        assert [status for status, _ in results] == [0] * len(commands), done.stderr
        return {name: output for name, (_, output) in zip(commands, results)}

    def load_weights(self, run_id: str) -> tuple[Weights, Weights]:
        """Load the final weights of a run: those made here, and those that eeee681 made."""
        made, expected = (load_file(folder / run_id / "weights.safetensors") for folder in self.result_folders)
        return made, expected

    def load_manifests(self, run_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        made, expected = (json.loads((f / run_id / "manifest.json").read_text()) for f in self.result_folders)
        return made, expected

    @property
    def result_folders(self) -> tuple[Path, Path]:
        return self.folder / "store/artifacts", self.folder / "expected"


@dataclass(frozen=True)
class UnfinishedRun:
    """What a killed run left: its record, and the averaged weights of its checkpoint."""

    record: dict[str, Any]
    average: Weights


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("compat").resolve()
    with tarfile.open(COMPAT_FOLDER / "store_eeee681.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    sql = (folder / ".presto/mlflow.sql").read_text().replace(EXPECTED["root"], str(folder))
    with closing(sqlite3.connect(folder / ".presto/mlflow.db")) as database:
        database.executescript(sql)
    return Store(folder)


@pytest.fixture(scope="module")
def predictions(store: Store) -> Iterator[Future[subprocess.CompletedProcess[str]]]:
    """Predict beside the other commands, to save time: it only reads the store."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(store.run_python, "-c", PREDICT, *EXPECTED["clips"])


@pytest.fixture(scope="module")
def before(store: Store, predictions: object) -> Outputs:
    """Outputs of all commands that only look, before anything is resumed."""
    return store.run_commands(COMMANDS)


@pytest.fixture(scope="module")
def unfinished(store: Store) -> dict[str, UnfinishedRun]:
    """The unfinished runs by stage, read before they are resumed."""
    runs = {}
    for stage, run in RUNS.items():
        folder = store.folder / "store/runs" / run["run_id"]
        (checkpoint,) = folder.glob("checkpoints/*/state.safetensors")
        average = {k.rpartition("/")[2]: v for k, v in load_file(checkpoint).items() if k.startswith("/emas/")}
        runs[stage] = UnfinishedRun(json.loads((folder / "run.json").read_text()), average)
    return runs


@pytest.fixture(scope="module")
def resumed(store: Store, before: Outputs, unfinished: object) -> Outputs:
    """What the commands write to standard error; one names its run, the others find theirs by their settings."""
    named = {"distill-layers": ["--resume", RUNS["distill-layers"]["run_id"]]}
    outputs = {}
    for stage, run in RUNS.items():
        outputs[stage] = store.run_python("-m", CLI, *run["words"], *named.get(stage, [])).stderr
    return outputs


@pytest.fixture(scope="module")
def after(store: Store, resumed: Outputs) -> Outputs:
    return store.run_commands({"list": LIST, "verify": VERIFY})


@pytest.fixture(scope="module")
def evaluated(store: Store, after: Outputs) -> Outputs:
    """A new evaluation, and a promotion that it decides; the old report has no clips by track to decide it."""
    # by number: the resumed runs have become the candidates
    old = {"candidate-s": "presto-generator@v2", "candidate-l": "presto-generator@v1"}
    evaluate = [re.sub("candidate-[sl]", lambda found: old[found[0]], word) for word in EXPECTED["evaluate"]]
    promote = ["registry", "promote", old["candidate-l"], *PROMOTE, "--dry-run", "--json"]
    return store.run_commands({"evaluate": evaluate, "promote": promote})


def test_registry_finds_versions_aliases_and_measurements(before: Outputs) -> None:
    versions = json.loads(before["list"])
    # numbers have their present names; the tags in MLflow keep the old ones
    expected = [v | {"measured": rename_former(v["measured"])} for v in EXPECTED["versions"]]
    assert [{key: v[key] for key in EXPECTED["versions"][0]} for v in versions] == expected
    (layers,) = json.loads(before["search"])
    assert layers["aliases"] == ["candidate-l"]


def test_registry_shows_the_champion_with_its_history(before: Outputs) -> None:
    champion = json.loads(before["show"])
    assert champion["made_with"]["commit"] == EXPECTED["made_from"]
    assert [decision["why"] for decision in champion["decisions"]] == ["the first one"]
    nodes = {node["id"] for node in json.loads(before["lineage"])["nodes"]}
    assert nodes == {champion["id"], *champion["parents"].values()}


def test_every_file_passes_verification_and_none_is_garbage(before: Outputs) -> None:
    assert json.loads(before["verify"]) == {"versions": len(EXPECTED["versions"]), "problems": {}}
    assert json.loads(before["gc"])["garbage"] == []


def test_the_old_report_is_shown_without_the_page_it_holds(store: Store, before: Outputs) -> None:
    folder = store.folder / ".presto/reports" / REPORT_ID
    page = (folder / "index.html").read_text()
    assert page != (store.folder / "store/artifacts" / REPORT_ID / "index.html").read_text()
    assert "test split" in page
    assert str(folder.relative_to(store.folder)) in before["report"]


@pytest.mark.slow
def test_an_evaluation_of_old_data_reports_its_held_out_rows_and_decides_promotions(evaluated: Outputs) -> None:
    assert "no test split" in evaluated["evaluate"]
    decision = json.loads(evaluated["promote"])
    (against,) = [check for check in decision["checks"] if check["name"] == "against champion"]
    assert decision["passed"], decision
    assert "of presto-generator@v2" in against["found"]


@pytest.mark.parametrize("stage", RUNS)
def test_settings_give_the_old_run_id(before: Outputs, unfinished: dict[str, UnfinishedRun], stage: str) -> None:
    """A dry run does not resolve parents, so the id is computed here from the settings that it prints."""
    settings, record = yaml.safe_load(before[stage]), unfinished[stage].record
    for (section, name), value in ADDED_SETTINGS.items():  # at their defaults, they are no part of the id
        if section in settings:
            assert settings[section].pop(name) == value
    result = {section: settings[section] for section in record["result"]}
    assert result == record["result"]
    body = [STAGE_CLASSES[stage], result, sorted(record["parents"].items())]
    assert hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16] == RUNS[stage]["run_id"]


@pytest.mark.parametrize("stage", RUNS)
def test_run_resumes_from_its_checkpoint(store: Store, resumed: Outputs, stage: str) -> None:
    run = RUNS[stage]
    assert f"at step {run['resumed_at']} of " in resumed[stage]
    assert not (store.folder / "store/runs" / run["run_id"]).exists()
    made, expected = store.load_manifests(run["run_id"])
    for (section, name), value in ADDED_SETTINGS.items():  # settings of the network that came later
        if section == "network" and made["model"]["network"].get(name) == value:
            expected["model"]["network"][name] = value
    for key in ("id", "kind", "parents", "model", "training"):
        assert made.get(key) == expected.get(key)


@pytest.mark.parametrize("stage", RUNS)
def test_run_ends_with_the_expected_weights(
    store: Store, unfinished: dict[str, UnfinishedRun], resumed: Outputs, stage: str
):
    made, expected = store.load_weights(RUNS[stage]["run_id"])
    assert made.keys() == expected.keys()
    if stage in EXACT and SAME_ARITHMETIC:
        assert [name for name in expected if not torch.equal(made[name], expected[name])] == []
    else:
        moved = measure_distance(unfinished[stage].average, expected)
        assert measure_distance(made, expected) <= TOLERANCE * moved


@pytest.mark.parametrize("stage", RUNS)
def test_mlflow_has_every_row_once(store: Store, resumed: Outputs, stage: str) -> None:
    query = "SELECT m.step, m.value FROM metrics m JOIN tags t USING (run_uuid) "
    query += "WHERE t.key = 'presto.run_id' AND t.value = ? AND m.key = 'dsm_loss' ORDER BY m.rowid"
    with closing(sqlite3.connect(store.folder / ".presto/mlflow.db")) as database:
        rows = database.execute(query, (RUNS[stage]["run_id"],)).fetchall()
    expected = RUNS[stage]["dsm_loss"]
    assert [step for step, _ in rows] == [step for step, _ in expected]
    assert [value for _, value in rows] == pytest.approx([value for _, value in expected], rel=TOLERANCE)


def test_results_are_registered_beside_the_old_versions(after: Outputs) -> None:
    versions = {(v["name"], v["version"]): v for v in json.loads(after["list"])}
    added = {(run["name"], run["version"]): run for run in RUNS.values()}
    assert versions.keys() == {(v["name"], v["version"]) for v in EXPECTED["versions"]} | added.keys()
    for key, run in added.items():
        assert [versions[key][name] for name in ("id", "kind", "method")] == [run["run_id"], run["kind"], run["method"]]
    aliases = {(v["name"], alias): v["version"] for v in versions.values() for alias in v["aliases"]}
    assert aliases["presto-generator", "champion"] == 2
    assert aliases["presto-teacher", "candidate"] == RUNS["train-teacher"]["version"]
    assert aliases["presto-generator", "candidate-l"] == RUNS["distill-layers"]["version"]
    assert aliases["presto-generator", "candidate-s"] == RUNS["distill-steps"]["version"]
    assert json.loads(after["verify"]) == {"versions": len(versions), "problems": {}}


def test_mlflow_loads_the_old_models(predictions: Future[subprocess.CompletedProcess[str]]) -> None:
    clips = json.loads(predictions.result().stdout.splitlines()[-1])
    for uri, (samples, rate, loudness) in EXPECTED["clips"].items():
        assert clips[uri][:2] == [samples, rate]
        # clips fade in and out over 5 ms since then, half a percent of these
        assert clips[uri][2] == pytest.approx(loudness, rel=1e-2)


def measure_distance(one: Weights, other: Weights) -> float:
    """Euclidean distance between all weights of two networks."""
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in other))
