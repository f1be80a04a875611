"""Models of the package: found by name, exported in bf16, music without a registry, parents of a distillation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from pipelines.inference.generator import load_generator
from pipelines.inference.model import open_model
from pipelines.registry.compatibility import check_comparable, check_layers_match_teacher, distillation_method
from pipelines.registry.export import export_artifact, export_id
from pipelines.registry.lineage import render_tree, trace_lineage
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.stages import distill_layers, distill_steps, generate, train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.store import StoreError
from presto_core.config.loader import load_config
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import GenerateStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import (
    DEFAULT_GENERATOR,
    DEFAULT_TEACHER,
    find_export_of,
    find_pretrained,
    list_pretrained,
)
from tests.support.pretrained_models import commit_untrained, export_untrained
from tests.support.synthetic_dataset import make_dataset
from tests.support.tiny_registry import QUICK, SMALL, TinyRegistry

STUDENT, TEACHER, LAYERS = DEFAULT_GENERATOR, DEFAULT_TEACHER, "presto-tiny-l"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models that stands for the package's."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setenv("PRESTO_PRETRAINED", str(folder))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model of the name that generation uses by default."""
    folder = tmp_path_factory.mktemp("exported")
    export_untrained(str(folder / "store"), folder / "package", name=STUDENT)
    return folder / "package"


@pytest.fixture
def with_student(exported: Path, package: Path) -> Path:
    shutil.copytree(exported, package, dirs_exist_ok=True)
    return package


# --- names


def test_only_models_that_are_there_are_listed_and_found_by_name_id_and_source(with_student: Path):
    (with_student / LAYERS).mkdir()  # without a manifest: not trained yet
    artifact = resolve_pretrained(STUDENT)
    assert artifact is not None
    assert list_pretrained() == [STUDENT]
    assert artifact.uri == f"pretrained://{STUDENT}"
    assert find_pretrained(artifact.id) == find_export_of(artifact.id) == find_export_of("1" * 16) == STUDENT
    assert [find_pretrained(name) for name in ("1" * 16, f"{STUDENT}@candidate", "candidate-s", "")] == [None] * 4
    with pytest.raises(UserError, match=rf"{LAYERS} .*make pretrained"):
        find_pretrained(LAYERS)
    with pytest.raises(UserError, match="nothing"):
        open_folder("pretrained://nothing")


def test_a_name_resolves_without_mlflow_and_storage_and_a_typo_gets_a_suggestion(with_student: Path, workdir: Path):
    assert resolve(None, STUDENT, "s3://no-such-bucket-of-anyone").kind == "generator"
    client = open_tracker(TrackingConfig()).client
    with pytest.raises(UserError, match=f"presto-tiny-ss.*did you mean {STUDENT}"):
        resolve(client, "presto-tiny-ss", "store")


# --- export


def test_an_export_rounds_parameters_to_bf16_and_nothing_else(with_student: Path, tmp_path: Path):
    source = commit_untrained(str(tmp_path / "store"))
    export = export_artifact(
        source.uri, tmp_path / "out", name=STUDENT, licence="MIT", provenance={"hours": 2},
        details={"gate": {"verdict": "passed"}}, files={"test_report.json": b"{}"},
    )  # fmt: skip
    before = open_model(source.uri).network
    after = open_model(export.uri).network
    stored = load_file(tmp_path / "out" / STUDENT / "weights.safetensors")
    for name, value in before.named_parameters():
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(after.get_parameter(name), value.bfloat16().float())
        assert after.get_parameter(name).dtype == torch.float32
    for name, buffer in before.named_buffers():
        assert name not in stored or torch.equal(stored[name], buffer)
    assert export.id == export_id(source.id, "bf16") != source.id
    assert (export.kind, export.manifest["parents"]) == (source.kind, source.manifest["parents"])
    assert export.manifest["model"] == source.manifest["model"]
    assert export.manifest["export"] | {"source": source.id, "licence": "MIT"} == export.manifest["export"]
    assert export.manifest["gate"] == {"verdict": "passed"}
    assert set(export.manifest["files"]) == {"config.yaml", "weights.safetensors", "test_report.json"}


def test_an_export_made_again_is_the_same_content_whatever_its_provenance(tmp_path: Path):
    source = commit_untrained(str(tmp_path / "store"))
    exports = [export_artifact(source.uri, tmp_path, name=STUDENT, provenance={"hours": h}) for h in (1, 2)]
    assert content_hash(exports[0].manifest) == content_hash(exports[1].manifest)
    assert [e.manifest["provenance"]["hours"] for e in exports] == [1, 2]
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_stores_other_noise_levels_under_another_id(tmp_path: Path):
    source = commit_untrained(str(tmp_path / "store"))
    levels = {"4": {"sigma_min": 0.002, "sigma_max": 20.0, "rho": 5.0}}
    plain = export_artifact(source.uri, tmp_path / "plain", name=STUDENT)
    export = export_artifact(source.uri, tmp_path / "chosen", name=STUDENT, card={"few_step_schedules": levels})
    card = open_model(export.uri).card
    assert (card.schedule_at(4), card.schedule_at(2)) == (ScheduleConfig(sigma_max=20.0, rho=5.0), ScheduleConfig())
    assert export.manifest["model"] == source.manifest["model"] | {"few_step_schedules": levels}
    assert export.id != plain.id == export_id(source.id, "bf16")


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path):
    source = commit_untrained(str(tmp_path / "store"))
    for name in ("Presto", "presto", "../presto-x", "candidate-ls@1", ""):
        with pytest.raises(UserError, match="cannot name"):
            export_artifact(source.uri, tmp_path / "out", name=name)
    data = make_dataset(str(tmp_path / "data"))
    with pytest.raises(UserError, match="dataset"):
        export_artifact(data.uri, tmp_path / "out", name=STUDENT)
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_of_the_package_is_not_used(with_student: Path, empty: Path):
    weights = with_student / STUDENT / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        load_generator(STUDENT)


# --- music right after installation


def test_generate_with_nothing_set_up_uses_the_package_and_neither_mlflow_nor_ray(with_student: Path, tmp_path: Path):
    """In a process of its own: one line names the model, no registry is created, and a seed gives the same bits."""
    check = (
        "import sys, infra.cli.main as cli\n"
        "sys.argv = ['presto', 'generate', 'solo piano, slow, A minor', 'generate.steps=2']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'mlflow', 'ray', 'boto3', 'librosa', 'pandas', 'sklearn'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    clips = []
    for name in ("one", "two"):
        (folder := tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", check], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(STUDENT) == 1, done.stderr
        assert not (folder / ".presto/mlflow.db").exists()
        (wav,) = (folder / ".presto/out").glob("solo-piano-slow-a-minor-2steps-seed0-*.wav")
        clips.append((wav.name, wav.read_bytes()))
    assert clips[0] == clips[1]


def test_the_registrys_candidate_comes_first_and_an_explicit_model_always(
    with_student: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"generate.prompts": ["x"], "storage.root": str(workdir / "store")}
    assert generate.find_model(load_config(GenerateStage, None, settings)).uri == f"pretrained://{STUDENT}"
    own = commit_untrained(str(workdir / "store"))
    home = TinyRegistry(str(workdir / "store"), open_tracker(TrackingConfig()), {})
    home.register(own, "presto-generator", "distill-steps")
    assert generate.find_model(load_config(GenerateStage, None, settings)).id == own.id
    printed = " ".join(capsys.readouterr().err.split())
    assert f"{STUDENT}, which comes with the package" in printed
    assert "with presto-generator@candidate of the registry" in printed
    explicit = settings | {"inputs.generator": STUDENT}
    assert generate.find_model(load_config(GenerateStage, None, explicit)).uri == f"pretrained://{STUDENT}"


def test_an_explicit_model_that_is_not_there_is_not_replaced(with_student: Path, workdir: Path):
    config = load_config(GenerateStage, None, {"inputs.generator": "presto-generator@candidate"})
    with pytest.raises(UserError, match="presto-generator@candidate"):
        generate.find_model(config)


def test_without_any_model_generate_tells_what_to_do(package: Path, empty: Path):
    with pytest.raises(UserError, match=r"presto demo.*make pretrained"):
        generate.find_model(load_config(GenerateStage, None, {}))
    assert not (empty / ".presto").exists()


def test_where_only_a_teacher_is_installed_it_is_named_and_few_steps_of_it_are_remarked(
    package: Path, empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export_untrained(str(tmp_path / "store"), package, name=DEFAULT_TEACHER, kind="teacher")
    with pytest.raises(UserError, match=f"--model {DEFAULT_TEACHER} .*generate.steps=40"):
        generate.find_model(load_config(GenerateStage, None, {}))
    settings = {"inputs.generator": DEFAULT_TEACHER, "generate.prompts": ["bells"], "generate.output": str(tmp_path)}
    for steps, is_remarked in ((2, True), (20, False)):
        generate.run(load_config(GenerateStage, None, {**settings, "generate.steps": steps}))
        assert ("not distilled for few steps" in " ".join(capsys.readouterr().err.split())) is is_remarked


def test_python_loads_a_model_of_the_package_by_name(with_student: Path, empty: Path):
    (clip,) = load_generator(STUDENT).generate(["solo piano"], steps=1)
    assert np.isfinite(clip.audio).all()
    assert not (empty / ".presto").exists()


# --- distillation from a model of the package


def distill(stage: type[LayersStage] | type[StepsStage], data: str, **inputs: str) -> Artifact:
    size: dict[str, object] = {"steps.generator_updates": 1, "steps.global_batch_size": 4, "steps.gan.head_layers": 1}
    if stage is LayersStage:
        size = {"layers.steps": 2, "layers.global_batch_size": 4}
    keys: dict[str, object] = {f"inputs.{role}": name for role, name in inputs.items()}
    config = load_config(stage, None, QUICK | size | keys | {"storage.root": "store", "inputs.dataset": data})
    return distill_layers.run(config) if isinstance(config, LayersStage) else distill_steps.run(config)


def test_l_s_and_ls_are_distilled_from_the_packages_teacher_on_other_data(package: Path, workdir: Path):
    own, other = (make_dataset(str(workdir / name), shard_rows=n).uri for name, n in (("a", (10, 20)), ("b", (9, 13))))
    some = {"teacher.steps": 4, "teacher.global_batch_size": 4, "storage.root": "store", "inputs.dataset": own}
    trained = train_teacher.run(load_config(TeacherStage, None, SMALL | QUICK | some))
    trained_l = distill(LayersStage, own, teacher=trained.id)
    teacher = export_artifact(trained.uri, package, name=TEACHER)
    layers = export_artifact(trained_l.uri, package, name=LAYERS)

    new_l = distill(LayersStage, other, teacher=TEACHER)
    small = distill(StepsStage, other, teacher=TEACHER)
    both = distill(StepsStage, other, teacher=TEACHER, layers=LAYERS)
    assert [distillation_method(artifact) for artifact in (new_l, small, both)] == ["L", "S", "LS"]
    assert small.manifest["parents"]["teacher"] == teacher.id
    assert both.manifest["parents"]["layers"] == layers.id
    for artifact in (new_l, small, both):  # the teacher's statistics, not the data set's
        assert all(artifact.manifest["model"][key] == trained.manifest["model"][key] for key in ("mean", "std"))
    check_comparable({"generator": small, "compared_0": both}, teacher)
    check_layers_match_teacher(replace(layers, uri="elsewhere"), teacher)

    catalog = TinyRegistry("store", open_tracker(TrackingConfig()), {}).catalog
    graph = trace_lineage(catalog, catalog.find("presto-generator@candidate-ls"))
    assert graph.pretrained.keys() == {teacher.id, layers.id}
    labels = json.dumps([str(child.label) for child in render_tree(graph).children])
    assert TEACHER in labels
    assert LAYERS in labels
    # what the package does not hold any more is still named by its id
    shutil.rmtree(package / TEACHER)
    shutil.rmtree(package / LAYERS)
    assert not trace_lineage(catalog, catalog.find("presto-generator@candidate-ls")).pretrained


def test_latents_are_normalized_by_the_teachers_statistics_and_not_by_the_data_sets(package: Path, workdir: Path):
    """The same rows under other statistics in the manifest: the same student, bit for bit."""
    rows = make_dataset(str(workdir / "rows"))
    some = {"teacher.steps": 4, "teacher.global_batch_size": 4, "storage.root": "store", "inputs.dataset": rows.uri}
    trained = train_teacher.run(load_config(TeacherStage, None, SMALL | QUICK | some))
    export_artifact(trained.uri, package, name=TEACHER)
    shutil.copytree(rows.uri, workdir / "other")
    manifest = json.loads((workdir / "other/manifest.json").read_text())
    stats = manifest["dataset"]["latents"]
    stats |= {"mean": [m + 0.5 for m in stats["mean"]], "std": [1.5 * s for s in stats["std"]]}
    (workdir / "other/manifest.json").write_text(json.dumps(manifest))
    for data in (rows.uri, str(workdir / "other")):
        made = distill(LayersStage, data, teacher=TEACHER)
        shutil.move(made.uri, f"{data}-L")  # the data sets have one id, so the runs have one too
    one, other = (load_file(f"{data}-L/weights.safetensors") for data in (rows.uri, workdir / "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(
        not torch.equal(value, open_model(trained.uri).network.state_dict()[name]) for name, value in one.items()
    )


def test_a_clip_of_the_package_is_a_wav_file(with_student: Path, empty: Path):
    (clip,) = generate.run(load_config(GenerateStage, None, {"generate.prompts": ["bells"], "generate.steps": 1}))
    assert soundfile.info(clip.wav).samplerate == 44100
