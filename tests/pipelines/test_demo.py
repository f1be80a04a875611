"""How `presto demo` distributes settings over its stages, and which teacher it distills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.presets.resolve import load_stage_config
from pipelines.workflows.demo import (
    DEMO_FLOW,
    check_installed,
    describe_node,
    list_nodes,
    load_flow_configs,
    open_teacher,
    open_training_session,
)
from presto_core.config.loader import ConfigError
from presto_core.config.schema import EvaluateStage, IngestStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_TEACHER, FOLDER_VAR, list_pretrained
from tests.support.pretrained_models import FRAMES, commit_untrained


def ingest_source(*overrides: str) -> str:
    ingest = load_flow_configs("demo", list(overrides))["ingest"]
    assert isinstance(ingest, IngestStage)
    (source,) = ingest.ingest.source
    return source


def test_ingest_reads_the_corpus_that_was_built_by_default():
    assert ingest_source() == ".presto/corpus"
    assert ingest_source("corpus.folder=elsewhere") == "elsewhere"
    assert ingest_source("corpus.folder=elsewhere", "ingest.source=/music") == "/music"


def test_an_override_reaches_every_stage_that_has_its_section():
    configs = load_flow_configs("demo", ["seed=5", "steps.generator_updates=7", "cluster.num_workers=1"])
    steps, evaluate = configs["S"], configs["evaluate"]
    assert isinstance(steps, StepsStage)
    assert isinstance(evaluate, EvaluateStage)
    assert steps.steps.generator_updates == 7
    assert {config.seed for config in configs.values()} == {5}
    assert {config.cluster.num_workers for config in configs.values()} == {1}


def test_an_override_that_fits_no_stage_is_refused():
    with pytest.raises(ConfigError, match=r"'steps\.p_dmd"):
        load_flow_configs("demo", ["steps.p_dmdd.kind=karras"])


def test_ls_runs_at_a_table_that_its_l_is_trained_for():
    def read_budget(node: str, *overrides: str) -> Any:
        return load_flow_configs("from_scratch", list(overrides))[node].model_dump()["steps"]["budget"]

    table = "layers.budget={kind: table, kept: [1, 2]}"
    assert read_budget("LS", table) == {"kind": "table", "kept": (1, 2)}
    assert read_budget("S", table) is None
    assert read_budget("LS", table, "steps.budget={kind: uniform, kept: 2}") == {"kind": "uniform", "kept": 2}
    assert read_budget("LS") is None  # the paper's


def test_every_node_reads_artifacts_of_earlier_nodes():
    before: set[str] = set()
    for name, step in DEMO_FLOW.items():
        assert {*step.inputs.values(), *step.compared} <= before, name
        before.add(name)


def test_the_baseline_differs_from_presto_l_only_in_its_defining_settings():
    configs = load_flow_configs("demo", ["layers.steps=7"])
    ours, baseline = (configs[name].model_dump()["layers"] for name in ("L", "ASE"))
    different = {key: (ours[key], baseline[key]) for key in ours if ours[key] != baseline[key]}
    assert different == {
        "mode": ("presto", "ase"),
        "budget_conditioning": (True, False),
        "self_teacher_weight": (ours["self_teacher_weight"], 0.0),
    }
    assert ours["steps"] == 7


def test_the_baselines_preset_is_the_flows_baseline():
    preset = load_stage_config("distill-layers", ["ablations/ase"])
    assert preset.model_dump()["layers"] == load_flow_configs("demo", [])["ASE"].model_dump()["layers"]


def test_a_dry_run_shows_the_inputs_of_each_node():
    assert describe_node("LS") == "## LS, made from dataset ingest, teacher teacher, layers L"
    assert describe_node("evaluate").endswith("compared ASE, compared L, compared S, compared LS")
    assert describe_node("evaluate", ("S", "evaluate")).endswith("teacher teacher, compared S")


def test_a_demo_trains_a_teacher_and_the_baseline_only_from_scratch():
    assert [name for name in DEMO_FLOW if name not in list_nodes(from_scratch=False)] == ["teacher", "ASE"]
    assert list_nodes(from_scratch=True) == list(DEMO_FLOW)


@pytest.mark.parametrize(
    ("preset", "teacher"), [("demo", DEFAULT_TEACHER), ("from_scratch", "presto-teacher@candidate")]
)
def test_every_stage_of_a_preset_reads_the_same_teacher(preset: str, teacher: str):
    assert {config.inputs.teacher for config in load_flow_configs(preset, []).values()} == {teacher}


def test_the_demo_distills_with_the_settings_of_the_models_in_the_package():
    """Only lengths of training differ, so that the demo shows how those models are made."""
    demo, package = (load_flow_configs(preset, []) for preset in ("demo", "presto_tiny"))
    lengths = {"steps", "generator_updates", "ema_decay"}
    for node, section in (("L", "layers"), ("S", "steps"), ("teacher", "network")):
        theirs, ours = (configs[node].model_dump()[section] for configs in (demo, package))
        assert {key for key in ours if ours[key] != theirs[key]} <= lengths, node
    ingest = [configs["ingest"] for configs in (demo, package)]
    frames = {config.ingest.chunk_frames for config in ingest if isinstance(config, IngestStage)}
    assert len(frames) == 1


def test_noise_levels_of_distillation_are_those_that_the_teacher_of_the_package_is_trained_on():
    configs = load_flow_configs("presto_tiny", [])
    teacher, layers, steps = configs["teacher"], configs["L"], configs["S"]
    assert isinstance(teacher, TeacherStage)
    assert isinstance(layers, LayersStage)
    assert isinstance(steps, StepsStage)
    assert teacher.teacher.p_train == layers.layers.p_train == steps.steps.p_dsm


@pytest.mark.skipif(DEFAULT_TEACHER not in list_pretrained(), reason="this installation holds no teacher")
def test_the_planned_network_is_that_of_the_teacher_in_the_package():
    configs = load_flow_configs("demo", [])
    teacher, network = open_teacher(configs, ".presto/store"), configs["teacher"]
    assert isinstance(network, TeacherStage)
    planned = network.network.model_dump(mode="json") | {"frame_rate": 44100 / 2048}  # of the data set's codec
    assert teacher.manifest["model"]["network"] == planned


def test_a_teacher_that_is_not_installed_is_refused_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER_VAR, str(tmp_path))
    with pytest.raises(UserError, match=r"presto-tiny-teacher.*make pretrained.*--from-scratch"):
        check_installed(DEFAULT_TEACHER)
    check_installed("my-teacher@champion")  # of the registry, which is asked later


def test_a_teacher_of_other_clips_is_refused_before_any_work(workdir: Path):
    uri = commit_untrained(str(workdir / "store"), kind="teacher").uri
    overrides, frames = [f"inputs.teacher={uri}", "ingest.overlap_frames=0"], FRAMES
    with pytest.raises(UserError, match=rf"ingest\.chunk_frames={frames}"):
        open_teacher(load_flow_configs("demo", [*overrides, f"ingest.chunk_frames={frames + 2}"]), str(workdir))
    teacher = open_teacher(load_flow_configs("demo", [*overrides, f"ingest.chunk_frames={frames}"]), str(workdir))
    assert teacher.uri == uri


def test_training_in_this_process_starts_no_ray():
    import ray

    before = ray.is_initialized()
    with open_training_session(ClusterConfig(num_workers=0)):
        assert ray.is_initialized() == before
