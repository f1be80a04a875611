"""How `presto pretrain` remakes the models in the package: settings, ids, where it trains, and what it records."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.evaluate.schedule_choice import ScheduleChoice
from pipelines.registry.export import export_artifact
from pipelines.stages import train_teacher
from pipelines.train.ray_train import select_device
from pipelines.workflows import pretrained_export
from pipelines.workflows.pretrained import NODES, check_writable, load_configs
from pipelines.workflows.pretrained_export import (
    EXPORTS,
    choose_all_schedules,
    describe_run,
    measure_training,
    select_results,
    sum_seconds,
)
from presto_core.artifacts.manifest import Artifact
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.sections import ClusterConfig
from presto_core.config.validation import ValidationConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import NAMES, get_pretrained_folder, list_pretrained
from tests.pipelines.test_training_stages import teacher_config
from tests.support.pretrained_models import commit_untrained
from tests.support.synthetic_dataset import make_dataset


def test_seconds_of_training_are_the_mean_of_each_row_times_its_steps():
    assert sum_seconds([(10, 2.0), (15, 4.0), (16, 0.5)]) == 10 * 2 + 5 * 4 + 0.5
    assert sum_seconds([]) == 0


def test_training_needs_no_cluster_and_stages_with_workers_get_one_thread_each():
    configs = load_configs("presto_tiny", ["cluster.torch_threads=8"])
    assert list(configs) == list(NODES)
    assert {config.cluster.num_workers for config in configs.values()} == {0}
    threads = {name: config.cluster.torch_threads for name, config in configs.items()}
    assert {name for name, count in threads.items() if count == 1} == {"ingest", "evaluate"}
    assert threads["teacher"] == 8


def test_every_shipped_model_is_an_export_of_a_node():
    assert tuple(EXPORTS.values()) == NAMES
    assert set(EXPORTS) <= set(NODES)


@pytest.mark.parametrize("node", EXPORTS)
def test_the_preset_makes_the_models_in_the_package(node: str):
    """The id of a run follows from its settings and parents: a changed preset would make other models."""
    name = EXPORTS[node]
    if name not in list_pretrained():
        pytest.skip(f"this installation does not hold {name}")
    manifest = json.loads((get_pretrained_folder() / name / "manifest.json").read_bytes())
    config = load_configs("presto_tiny", [])[node]
    assert config.run_id(manifest["parents"]) == manifest["export"]["source"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/models.*--output"):
        check_writable(tmp_path / "file/models")
    check_writable(tmp_path / "new/models")
    assert (tmp_path / "new/models").is_dir()


def test_the_test_report_of_a_model_holds_its_own_systems_alone():
    rows: list[dict[str, Any]] = [
        {"name": "teacher euler 8", "label": "teacher euler"},
        {"name": "L euler 8", "label": "L euler"},
        {"name": "S 4", "label": "S"},
        {"name": "LS 1", "label": "LS"},
        {"name": "LS 4", "label": "LS"},
    ]
    models = {role: {"label": label, "artifact": label} for role, label in enumerate(("teacher", "L", "S", "LS"))}
    report = {"systems": rows, "models": models, "split": "test", "floor": {"mmd": 0.1}, "clips": ["a.wav"]}
    for label, names in (("LS", ["LS 1", "LS 4"]), ("L", ["L euler 8"]), ("teacher", ["teacher euler 8"])):
        results = select_results(report, Artifact(label, "generator", "", {}))
        assert [row["name"] for row in results["systems"]] == names
        assert results["split"] == "test"
        assert results["floor"] == {"mmd": 0.1}


def test_noise_levels_are_chosen_once_for_each_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A second run keeps those of an export of the same generator; another generator or other steps get their own."""
    chosen: list[str] = []

    def choose(uri: str, dataset_uri: str, *, steps: tuple[int, ...], validation: ValidationConfig):
        chosen.append(uri)
        assert validation.samples == 128
        return [ScheduleChoice(n, ScheduleConfig(sigma_max=20.0 + len(chosen)), 0.1, 0.2, 2) for n in steps]

    monkeypatch.setattr(pretrained_export, "choose_schedules", choose)
    configs = load_configs("presto_tiny", [])
    models = {
        node: commit_untrained(str(tmp_path / "store"), artifact_id=digit * 16)
        for node, digit in (("S", "1"), ("LS", "2"), ("ingest", "3"))
    }
    levels = choose_all_schedules(configs, models, tmp_path / "models")
    assert chosen == [models["S"].uri, models["LS"].uri]
    for node in ("S", "LS"):
        card = {"few_step_schedules": levels[node]}
        export_artifact(models[node].uri, tmp_path / "models", name=EXPORTS[node], card=card)
    models["LS"] = commit_untrained(str(tmp_path / "store"), artifact_id="4" * 16)
    again = choose_all_schedules(configs, models, tmp_path / "models")
    assert chosen[2:] == [models["LS"].uri]
    expected = {"sigma_min": 0.002, "sigma_max": 21.0, "rho": 7.0}
    assert again["S"] == levels["S"] == dict.fromkeys(("1", "2", "4"), expected)
    assert again["LS"]["4"]["sigma_max"] == 23.0
    more_steps = load_configs("presto_tiny", ["evaluate.student_steps=[1, 2, 4, 8]"])
    assert choose_all_schedules(more_steps, models, tmp_path / "models")["S"].keys() == {"1", "2", "4", "8"}
    assert chosen[3:] == [models["S"].uri, models["LS"].uri]


@pytest.mark.parametrize(
    ("has_gpu", "in_sweep", "gpus_per_worker", "device"),
    [(False, False, 0, "cpu"), (True, False, 0, "cuda"), (True, True, 0, "cpu"), (True, True, 1, "cuda")],
)
def test_a_run_without_workers_uses_a_gpu_unless_it_is_a_trial_that_reserved_none(
    has_gpu: bool, in_sweep: bool, gpus_per_worker: float, device: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    cluster = ClusterConfig(gpus_per_worker=gpus_per_worker)
    assert select_device(cluster, in_sweep=in_sweep).type == device


# over 10 s: where cores are busy, an import of MLflow and a training of eight updates
def test_a_trained_model_records_its_hours_and_what_it_was_trained_on(workdir: Path):
    config = teacher_config(str(workdir / "store"), make_dataset(str(workdir / "data")).uri, **{"loop.log_every": 2})
    started = time.monotonic()
    artifact = train_teacher.run(config)
    elapsed_s = time.monotonic() - started
    seconds = measure_training(artifact, config.tracking)
    assert seconds is not None
    assert 0 < seconds < elapsed_s
    assert describe_run(artifact, config.tracking) == {
        "command": "make pretrained",
        "training_hours": round(seconds / 3600, 6),
    }
    assert {"device", "torch", "threads"} <= artifact.manifest["made_with"].keys()
    assert measure_training(Artifact("0" * 16, "teacher", "", {}), config.tracking) is None
